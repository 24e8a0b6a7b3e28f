//! The digests that `fixtures/digests` tells client authors are those that rollcall computes.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use rollcall_core::digest::{Digest, Seed};
use rollcall_core::model::{Precision, RowKey, Timestamp};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vectors {
    title: String,
    seed: String,
    tables: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    rows: Vec<Row>,
    count: u64,
    root: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    key: String,
    seconds: Option<String>,
    milliseconds: String,
    ms: i64,
    hash: String,
}

/// Every file of vectors, by name.
fn vectors() -> Vec<(String, Vectors)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/digests")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let read = serde_json::from_slice(&std::fs::read(&path).unwrap());
            let read = read.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            found.push((path.file_name().unwrap().to_string_lossy().into_owned(), read));
        }
    }
    found
}

fn seed(hex: &str) -> Seed {
    assert_eq!(hex.len(), 32);
    Seed(std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()))
}

/// Goal: a client that passes the vectors agrees with the server. Method: each is computed anew, rows added
/// one by one, then taken out again.
#[test]
fn every_vector_is_what_we_compute() {
    let (mut rows, mut empty, mut before_1970) = (0, 0, 0);
    for (file, vectors) in vectors() {
        let seed = seed(&vectors.seed);
        assert_eq!(seed.to_string(), vectors.seed, "{file}");
        for (name, table) in vectors.tables {
            let at = format!("{file} ({}), {name}", vectors.title);
            let table: Table = serde_json::from_value(table).unwrap_or_else(|e| panic!("{at}: {e}"));
            let mut digest = Digest::default();
            let mut hashes = Vec::new();
            for row in &table.rows {
                let last_update = Timestamp::from_ms(row.ms);
                assert_eq!(last_update.ms(), row.ms, "{at}, {}: not a time that the server keeps", row.key);
                let hash = seed.row(RowKey::parse(&row.key).unwrap(), last_update);
                assert_eq!(format!("{hash:016x}"), row.hash, "{at}, {}", row.key);
                digest.add(hash);
                hashes.push(hash);
                before_1970 += usize::from(row.ms < 0);
            }
            assert_eq!(digest.count, table.count, "{at}");
            assert_eq!(format!("{:016x}", digest.root), table.root, "{at}");
            rows += table.rows.len();
            empty += usize::from(table.rows.is_empty());
            hashes.into_iter().for_each(|hash| digest.remove(hash));
            assert_eq!(digest, Digest::default(), "{at}: taken out again");
        }
    }
    assert!(rows >= 20 && empty > 0 && before_1970 > 0, "{rows} rows: a moved folder must not pass");
}

/// Goal: a client may hash what it reads. Method: both spellings of a time are read, and written again.
#[test]
fn both_spellings_of_a_time_are_the_number_that_is_hashed() {
    for (file, vectors) in vectors() {
        for (name, table) in vectors.tables {
            let table: Table = serde_json::from_value(table).unwrap();
            for row in table.rows {
                let at = format!("{file}, {name}, {}", row.key);
                let whole = row.ms.rem_euclid(1_000) == 0;
                assert_eq!(row.seconds.is_some(), whole, "{at}: told in seconds where nothing is lost by it");
                for (text, precision) in
                    [(Some(row.milliseconds), Precision::Milliseconds), (row.seconds, Precision::Seconds)]
                {
                    let Some(text) = text else { continue };
                    let read = Timestamp::parse(&text).unwrap_or_else(|error| panic!("{at}: {error}"));
                    assert_eq!(read.ms(), row.ms, "{at}");
                    assert_eq!(read.format(precision).to_string(), text, "{at}");
                }
            }
        }
    }
}

/// Goal: some table's sum goes beyond 64 bits, or a client that does not wrap would pass. Method: add in 128 bits.
#[test]
fn some_sums_wrap_around_and_some_do_not() {
    let mut wraps = std::collections::BTreeSet::new();
    for (_, vectors) in vectors() {
        for (_, table) in vectors.tables {
            let table: Table = serde_json::from_value(table).unwrap();
            let hash = |row: &Row| u128::from(u64::from_str_radix(&row.hash, 16).unwrap());
            wraps.insert((table.rows.iter().map(hash).sum::<u128>() >> 64).min(2));
        }
    }
    assert_eq!(wraps.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
}
