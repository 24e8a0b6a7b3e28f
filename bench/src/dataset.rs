//! The people and rows of the benchmark: the same in every run, so that runs can be compared.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use uuid::{Builder, Uuid};

use super::Result;
use rollcall_core::model::{DeviceId, Owner, Precision, RowKey, Timestamp, Value};
use rollcall_core::schema::Schema;
use rollcall_core::storage::accounts::{AccountStore, Device, TokenHash, User};

/// The schema that the server is started with.
pub const SCHEMA: &str = include_str!("schema.toml");

/// Its only table.
pub const TABLE: &str = "notes";

/// The time of the first row, ms; the others follow a second apart.
const BEGINNING_MS: i64 = 1_735_689_600_000;

/// Far enough for a seed that is kept for years.
const EXPIRY_MS: i64 = 4_000_000_000_000;

const WORDS: [&str; 16] = [
    "anchor", "bridge", "candle", "dragon", "ember", "forest", "garden", "harbour", "island", "jacket",
    "kettle", "lantern", "meadow", "napkin", "orchard", "pepper",
];

/// The schema, read.
pub fn schema() -> Result<Schema> {
    Schema::parse(SCHEMA).map_err(|error| error.to_string().into())
}

/// How keys are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Keys {
    /// By time: each above the one before.
    V7,
    /// By chance.
    V4,
}

/// One user with two devices, whose rows are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Person(pub u64);

impl Person {
    fn bytes<const N: usize>(self, purpose: u64) -> [u8; N] {
        let mut chance = Chance::new(self.0, purpose, 0);
        let mut bytes = [0; N];
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&chance.next().to_le_bytes()[..part.len()]);
        }
        bytes
    }

    fn id(self, purpose: u64) -> Uuid {
        Builder::from_random_bytes(self.bytes(purpose)).into_uuid()
    }

    /// Whose rows they are.
    pub fn owner(self) -> Owner {
        Owner(self.id(1))
    }

    /// One of the two devices.
    pub fn device(self, place: u64) -> DeviceId {
        DeviceId(self.id(2 + place))
    }

    /// The token of a device.
    pub fn token(self, place: u64) -> String {
        format!("rc_{}", URL_SAFE_NO_PAD.encode(self.bytes::<32>(4 + place)))
    }

    /// Lets both devices in.
    pub fn enrol(self, accounts: &dyn AccountStore) -> Result<()> {
        let created_at = Timestamp::from_ms(BEGINNING_MS);
        let (id, owner) = (self.id(0), self.owner());
        let email = format!("person-{}@example.com", self.0);
        // Nobody logs in: no password has this hash.
        let password_hash = "none".to_owned();
        accounts.add_user(&User {
            id,
            email,
            password_hash,
            owner,
            is_home: true,
            created_at,
            verified_at: None,
        })?;
        for place in 0..2 {
            let expires_at = Timestamp::from_ms(EXPIRY_MS);
            let name = format!("device {place}");
            let device = Device { id: self.device(place), user: id, owner, name, created_at, expires_at };
            let hash: TokenHash = Sha256::digest(self.token(place)).into();
            accounts.put_device(&device, &hash)?;
        }
        Ok(())
    }
}

/// One row.
#[derive(Clone, Debug)]
pub struct Row {
    pub key: RowKey,
    pub last_update: Timestamp,
    pub title: String,
    pub body: String,
    pub done: bool,
    pub position: i64,
    /// In cents.
    pub price: i64,
    /// Of a month.
    pub due: u64,
    pub made: Timestamp,
}

impl Row {
    /// A person's row of that number; two `edition`s of it differ in all that is not its key.
    pub fn new(person: Person, keys: Keys, number: u64, edition: u64) -> Self {
        let at = BEGINNING_MS + i64::try_from(number).unwrap_or(0) * 1_000;
        let mut chance = Chance::new(person.0, u64::MAX, number);
        let random = [chance.next().to_le_bytes(), chance.next().to_le_bytes()].concat();
        let key = match keys {
            Keys::V7 => {
                let mut low = [0; 10];
                low.copy_from_slice(&random[..10]);
                Builder::from_unix_timestamp_millis(at.cast_unsigned(), &low)
            }
            Keys::V4 => {
                let mut all = [0; 16];
                all.copy_from_slice(&random);
                Builder::from_random_bytes(all)
            }
        };
        let mut chance = Chance::new(person.0, edition, number);
        let mut words = |count: usize| {
            let words = (0..count).map(|_| WORDS[(chance.next() % WORDS.len() as u64) as usize]);
            words.collect::<Vec<_>>().join(" ")
        };
        let (title, body) = (words(3), words(11));
        Self {
            key: RowKey(key.into_uuid()),
            last_update: Timestamp::from_ms(at).shifted(i64::try_from(edition).unwrap_or(0)),
            title,
            body,
            done: chance.next().is_multiple_of(2),
            position: (chance.next() % 100_000).cast_signed(),
            price: (chance.next() % 100_000).cast_signed(),
            due: chance.next() % 28 + 1,
            made: Timestamp::from_ms(at),
        }
    }

    /// As SQL keeps it.
    pub fn price_text(&self) -> String {
        format!("{}.{:02}", self.price / 100, self.price % 100)
    }

    /// As SQL keeps it.
    pub fn due_text(&self) -> String {
        format!("2027-02-{:02}", self.due)
    }

    /// As the engine takes it.
    pub fn values(&self) -> Result<Vec<Value>> {
        Ok(vec![
            Value::Text(self.title.clone()),
            Value::Text(self.body.clone()),
            Value::Boolean(self.done),
            Value::Integer(self.position),
            Value::Decimal(self.price_text().parse()?),
            Value::Date(self.due_text().parse()?),
            Value::Timestamp(self.made),
        ])
    }

    /// As a device sends it.
    pub fn write_json(&self, body: &mut Vec<u8>) {
        let format = |at: Timestamp| at.format(Precision::Milliseconds);
        let text = format!(
            "{{\"id\":\"{}\",\"title\":\"{}\",\"body\":\"{}\",\"done\":{},\"position\":{},\"price\":\"{}\",\
             \"due\":\"{}\",\"made\":\"{}\",\"last_update\":\"{}\"}}",
            self.key,
            self.title,
            self.body,
            self.done,
            self.position,
            self.price_text(),
            self.due_text(),
            format(self.made),
            format(self.last_update),
        );
        body.extend_from_slice(text.as_bytes());
    }
}

/// Numbers that look random and are always the same (SplitMix64).
struct Chance(u64);

impl Chance {
    fn new(person: u64, purpose: u64, number: u64) -> Self {
        let mut chance = Self(person);
        for part in [purpose, number] {
            chance.0 = chance.next() ^ part;
        }
        chance
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
