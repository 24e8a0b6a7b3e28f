//! The readers of what clients and operators send, and what must hold of their results for any bytes.
//!
//! `tests/hostile` runs them on mutations from a seed, and on every input that once made one fail; the
//! targets in `fuzz` run them on coverage-guided inputs. Each returns the outcome of an input, and panics if
//! something does not hold.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use rollcall::accounts::{AccountError, JwtAccounts};
use rollcall::clock::Clock;
use rollcall::config::{AuthMode, AuthSettings, Limits};
use rollcall::contract;
use rollcall::http::ApiError;
use rollcall::http::wire::{Fields, read_batch};
use rollcall::model::{Precision, Timestamp};
use rollcall::reconcile::Incoming;
use rollcall::schema::{Schema, Table, WireValue};
use rollcall::storage::postgres::Address;
use rollcall::synchronise::{Batch, Set};
use serde_json::{Map, Value as Json, json};

/// Tables with every type, both spellings of times, and references.
pub const SCHEMA: &str = r#"
[table.lists]
key = "lid"
[table.lists.columns]
title = { type = "text", required = true, max_length = 20 }
colour = { type = "text", default = "red" }

[table.things]
key = "id"
[table.things.columns]
text = "text"
whole = "integer"
real = "real"
exact = "decimal"
flag = "boolean"
other = { type = "uuid", references = "lists" }
at = "timestamp"
day = "date"
extra = "json"
bytes = "blob"
"#;

pub fn schema() -> &'static Schema {
    static SCHEMA_READ: OnceLock<Schema> = OnceLock::new();
    SCHEMA_READ.get_or_init(|| Schema::parse(SCHEMA).unwrap())
}

/// A body of `POST /synchronise`: an accepted one means the same when it is written again, and a refused or
/// rejected one has an existing position.
pub fn body(input: &[u8]) -> String {
    let limits = Limits::default();
    let read = read_batch(input, schema(), &limits);
    if let Ok(batch) = &read {
        let again = written(batch).to_string();
        let same = read_batch(again.as_bytes(), schema(), &limits);
        let readable = Batch { unreadable: Vec::new(), ..batch.clone() };
        assert_eq!(same.as_ref().ok(), Some(&readable), "written down once more: {again}: {same:?}");
        let json: Result<Json, _> = serde_json::from_slice(input);
        for item in &batch.unreadable {
            let at = format!("/{}/{}/{}", item.part.name(), schema().at(item.table).name, item.index);
            assert!(!item.fault.detail.is_empty());
            if let Ok(json) = &json {
                assert!(json.pointer(&at).is_some() || comes_twice(input), "{at:?} points nowhere");
            }
        }
        if !batch.unreadable.is_empty() {
            return "rows rejected".into();
        }
    }
    outcome(input, read)
}

/// A body of `POST /login`.
pub fn login(input: &[u8]) -> String {
    let read = Fields::read(input).and_then(|mut fields| {
        for name in ["email", "password", "device", "device_id"] {
            fields.optional_text(name)?;
        }
        fields.end()
    });
    outcome(input, read)
}

fn outcome<T>(input: &[u8], read: Result<T, ApiError>) -> String {
    let json: Result<Json, _> = serde_json::from_slice(input);
    match read {
        Ok(_) => "taken".into(),
        Err(ApiError::MalformedJson { .. }) => {
            assert!(json.is_err(), "this is JSON");
            "malformed_json".into()
        }
        Err(ApiError::InvalidBody { code, at, reason }) => {
            assert!(!reason.is_empty());
            assert!(at.is_empty() || at.starts_with('/'), "{at:?} is no JSON pointer");
            if let Ok(json) = json {
                let holder = at.rsplit_once('/').map_or("", |(holder, _)| holder);
                // A missing member is named where it should be. A duplicate may hide the other.
                let is_there = json.pointer(&at).is_some() || json.pointer(holder).is_some();
                assert!(is_there || comes_twice(input), "{at:?} points nowhere: {reason}");
            }
            format!("{code:?}")
        }
        Err(other) => panic!("not a fault of a body: {other:?}"),
    }
}

/// Whether any name may be duplicate in an object: a rough check, by names that occur twice in the text.
fn comes_twice(input: &[u8]) -> bool {
    let mut seen = BTreeSet::new();
    let text = String::from_utf8_lossy(input);
    text.split('"').any(|piece| !seen.insert(piece.to_owned()))
}

/// A batch as a body.
fn written(batch: &Batch) -> Json {
    let at = |at: Timestamp| json!(at.format(Precision::Milliseconds).to_string());
    let mut body = Map::new();
    for (name, sets) in [("add", &batch.add), ("update", &batch.update), ("delete", &batch.delete)] {
        body.insert(name.into(), sets_of(sets, name == "delete"));
    }
    let keys = batch.get.iter().map(|(table, keys)| (schema().at(*table).name.clone(), json!(keys)));
    body.insert("get".into(), Json::Object(keys.collect()));
    body.extend(batch.base.map(|base| ("base".into(), json!(base))));
    body.extend(batch.sent_at.map(|sent| ("sent_at".into(), at(sent))));
    body.extend(batch.confirm_deletes.map(|count| ("confirm_deletes".into(), json!(count))));
    for (name, flag) in [
        ("atomic", batch.atomic),
        ("dry_run", batch.dry_run),
        ("pull", batch.pull),
        ("keep_lock", batch.keep_lock),
        ("put_back", batch.put_back),
    ] {
        body.insert(name.into(), json!(flag));
    }
    Json::Object(body)
}

fn sets_of(sets: &[Set], deletes: bool) -> Json {
    let sets = sets.iter().map(|(table, rows)| {
        let table = schema().at(*table);
        let rows = rows.iter().map(|row| row_of(table, row, deletes));
        (table.name.clone(), Json::Array(rows.collect()))
    });
    Json::Object(sets.collect())
}

fn row_of(table: &Table, row: &Incoming, deletes: bool) -> Json {
    let at = |at: Timestamp| json!(at.format(Precision::Milliseconds).to_string());
    if deletes && row.last_update.is_none() && row.base.is_none() {
        return json!(row.key);
    }
    let mut result = Map::new();
    result.insert(table.key.clone(), json!(row.key));
    for (column, value) in table.columns.iter().zip(&row.values) {
        if let Some(value) = value {
            let wire = WireValue { value, precision: Precision::Milliseconds };
            result.insert(column.name.clone(), serde_json::to_value(wire).unwrap());
        }
    }
    result.extend(row.last_update.map(|time| ("last_update".into(), at(time))));
    result.extend(row.base.map(|time| ("_base".into(), at(time))));
    Json::Object(result)
}

/// What tokens are signed with.
pub const SECRET: &[u8] = b"a secret of more than thirty-two bytes";

fn accounts() -> &'static JwtAccounts {
    static ACCOUNTS: OnceLock<JwtAccounts> = OnceLock::new();
    ACCOUNTS.get_or_init(|| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), SECRET).unwrap();
        let secret = Some(file.path().to_owned());
        let settings =
            AuthSettings { auth: AuthMode::Jwt, jwt_secret_file: secret, ..AuthSettings::default() };
        JwtAccounts::open(&settings, 100, Clock::system()).unwrap()
    })
}

/// A token.
pub fn token(input: &[u8]) -> String {
    authenticated(&String::from_utf8_lossy(input))
}

/// A token of two lines, its header and its claims, under a good signature: only the right algorithm is taken, and
/// only what names somebody and has not run out.
pub fn claims(input: &[u8]) -> String {
    let mut lines = input.splitn(2, |byte| *byte == b'\n');
    let [header, claims] = [lines.next().unwrap_or_default(), lines.next().unwrap_or_default()];
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(SECRET);
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).unwrap();
    let result = authenticated(&format!("{signed}.{signature}"));
    if result == "taken" {
        let read = |part: &[u8]| serde_json::from_slice::<Json>(part).unwrap();
        assert_eq!(read(header)["alg"], "HS256");
        let claims = read(claims);
        assert!(claims["sub"].as_str().is_some_and(|user| !user.is_empty()), "nobody is named");
        assert!(claims["exp"].as_f64().is_some_and(|ends| ends > 1_750_000_000.0), "it has run out");
    }
    result
}

fn authenticated(token: &str) -> String {
    match accounts().authenticate(token) {
        Ok(_) => "taken".to_owned(),
        Err(AccountError::Unauthorized(why)) => why.to_owned(),
        Err(other) => panic!("not a fault of a token: {other:?}"),
    }
}

/// A schema file: an accepted one has a contract, and each of its tables is found.
pub fn schema_file(input: &[u8]) -> String {
    match Schema::parse(&String::from_utf8_lossy(input)) {
        Ok(schema) => {
            assert!(!schema.tables().is_empty());
            for table in schema.tables() {
                assert_eq!(schema.table(&table.name).map(|found| found.id), Some(table.id));
                let parents = table.references().filter(|(_, parent)| *parent != table.id);
                let order = schema.parents_first();
                let place = |id| order.iter().position(|other| *other == id).unwrap();
                parents
                    .for_each(|(_, parent)| assert!(place(parent) < place(table.id), "a child comes first"));
            }
            let contract = contract::typed(&schema, &[]).unwrap();
            assert!(contract["paths"]["/synchronise"].is_object());
            "taken".into()
        }
        Err(error) => {
            assert!(!error.faults().is_empty() && !error.to_string().is_empty());
            "refused".into()
        }
    }
}

/// The address of a database: an accepted one is accepted again in its displayed form, and its password is
/// never shown.
pub fn address(input: &[u8]) -> String {
    let text = String::from_utf8_lossy(input);
    if text.contains("sslrootcert") {
        return "left out: it would read any file".into();
    }
    match text.parse::<Address>() {
        Ok(address) => {
            let shown = format!("{address} {address:?}");
            let is_password = text.starts_with(&format!("postgres://anna:{PASSWORD}@"));
            let is_once = text.matches(PASSWORD).count() == 1;
            assert!(!is_password || !is_once || !shown.contains(PASSWORD), "{shown}");
            assert_eq!(address.url().parse::<Address>().as_ref(), Ok(&address));
            "taken".into()
        }
        Err(reason) => {
            assert!(!reason.is_empty());
            "refused".into()
        }
    }
}

/// The password in the addresses to begin with.
pub const PASSWORD: &str = "Sesame-0pen";

/// Valid inputs to begin with, for each reader by name.
pub fn begin_with(reader: &str) -> Vec<Vec<u8>> {
    let key = |n: u8| format!("01900000-0000-7000-8000-0000000000{n:02x}");
    let row = json!({ "id": key(1), "text": "x", "whole": 7, "real": 0.5, "exact": "12.50", "flag": true,
        "other": key(2), "at": "2024-05-01T12:00:00.123Z", "day": "2024-05-01", "extra": { "a": [1, null, "ü"] },
        "bytes": "AAEC", "last_update": "2024-05-01 12:00:00", "_base": "2024-05-01T12:00:00+02:00" });
    let texts = |all: &[Json]| all.iter().map(|json| json.to_string().into_bytes()).collect();
    match reader {
        "body" => texts(&[
            json!({}),
            json!({ "add": { "things": [row] },
                "update": { "lists": [{ "lid": key(3), "title": "t", "colour": null }] } }),
            json!({ "delete": { "things": [key(1), { "id": key(2), "last_update": "2024-05-01T12:00:00Z" }],
                "lists": [] }, "get": { "lists": [key(1)] } }),
            json!({ "base": 3, "sent_at": "2024-05-01T12:00:00Z", "atomic": true, "dry_run": false,
                "keep_lock": true, "pull": true, "confirm_deletes": 3 }),
            json!({ "put_back": true, "add": { "lists": [{ "lid": key(3), "title": "t" }] } }),
            json!({ "add": { "things": [{ "id": key(4), "whole": "9007199254740993", "bytes": "" }] }, "get": {} }),
        ]),
        "login" => texts(&[json!({ "email": "a@example.org", "password": "x", "device": "Anna's phone",
            "device_id": null })]),
        "token" => {
            let claims = json!({ "sub": "anna", "device_id": "phone", "exp": 9_999_999_999_u64 });
            let header = jsonwebtoken::Header::default();
            let token = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(SECRET));
            vec![token.unwrap().into_bytes()]
        }
        "claims" => vec![
            br#"{"alg":"HS256","typ":"JWT","kid":"k"}
{"sub":"anna","device_id":"phone","exp":9999999999,"nbf":0,"iss":"x","iat":1}"#
                .to_vec(),
        ],
        "schema" => {
            let files =
                ["wedding/schema.toml", "contract/odd.toml", "sync/policies.toml", "reconcile/schema.toml"];
            // A folder below the checkout, here and where the fuzzer includes this file.
            let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures");
            let mut all = vec![SCHEMA.as_bytes().to_vec()];
            all.extend(files.map(|file| std::fs::read(format!("{fixtures}/{file}")).unwrap()));
            all
        }
        "address" => [
            format!("postgres://anna:{PASSWORD}@db.example.org:5433/app?sslmode=require"),
            "postgresql://anna@%2Frun%2Fpostgresql/app?application_name=x&connect_timeout=3".into(),
            format!("postgres://anna:{PASSWORD}@[::1]/app?sslmode=disable&options=-c%20x%3Dy"),
        ]
        .map(String::into_bytes)
        .to_vec(),
        _ => panic!("there is no reader {reader}"),
    }
}

/// A reader by name.
pub fn reader(name: &str) -> fn(&[u8]) -> String {
    match name {
        "body" => body,
        "login" => login,
        "token" => token,
        "claims" => claims,
        "schema" => schema_file,
        "address" => address,
        _ => panic!("there is no reader {name}"),
    }
}
