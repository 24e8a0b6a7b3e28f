use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use clap::Args;
use uuid::Uuid;

use super::Done;
use super::database::Database;
use super::log::log_to_stderr;
use super::serve::{app, bind, open, run};
use crate::accounts::LogIn;
use crate::clock::Clock;
use crate::config::{Secret, Settings, address};
use crate::http::App;
use crate::http::pages::{DemoAccounts, DemoPhone, Pages};
use crate::http::wire::read_batch;
use crate::metrics::Metrics;
use crate::model::{DeviceId, Owner};
use crate::schema::Schema;
use crate::storage::sqlite::Sqlite;
use crate::synchronise;

const SCHEMA: &str = include_str!("../../fixtures/wedding/schema.toml");
const ROWS: &str = include_str!("../../fixtures/wedding/rows.json");
const SYNCHRONISE: &str = include_str!("../../fixtures/wedding/synchronise.json");

const DATABASE: &str = "rollcall-demo.db";
const BODY: &str = "rollcall-demo-synchronise.json";
const EMAIL: &str = "anna@example.com";
/// Shares Anna's rows: the page's second phone is his.
const PARTNER: &str = "ben@example.com";
const PASSWORD: &str = "something borrowed";
const DEVICES: [&str; 2] = ["Anna's phone", "Anna's tablet"];
/// The phones of the page, and whose they are.
const PHONES: [(&str, &str); 2] = [("Anna’s phone", EMAIL), ("Ben’s phone", PARTNER)];

/// Long enough to paste one line after the other and to look at each answer.
const LEASE_MS: u64 = 120_000;

/// Serve a wedding planner with data in it: two phones in the browser, and the calls to try
///
/// Makes rollcall-demo.db in the current folder, with a schema, its rows, a couple of users and their devices.
/// Prints the address of a page with two phones on it, and the calls of a whole sync, to paste into another
/// terminal.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Where to listen; if the port is taken, a free one is picked
    #[arg(
        long,
        env = "ROLLCALL_LISTEN",
        value_name = "IP:PORT",
        value_parser = address,
        default_value = "127.0.0.1:7878"
    )]
    listen: SocketAddr,

    /// Go on with the data of the last demo instead of beginning anew
    #[arg(long)]
    keep: bool,

    /// Show the page in this machine's browser
    #[arg(long)]
    open: bool,
}

impl Demo {
    pub fn run(self) -> Done {
        let path = Path::new(DATABASE);
        let mut settings = Settings { listen: self.listen, log: "warn".into(), ..Settings::default() };
        settings.sync.lease_ms = LEASE_MS;
        let console_token = Uuid::new_v4().simple().to_string();
        settings.operator.console_token = Some(Secret::from(console_token.as_str()));
        // Whoever plays with it logs in more often than a user would, and always from this machine.
        settings.limits.logins_per_account_per_min = 0;
        settings.limits.logins_per_account_per_hour = 0;
        settings.limits.logins_per_address_per_min = 0;
        let _log = log_to_stderr(&settings)?;
        if !self.keep {
            Sqlite::remove(path)?;
        }
        let schema = Arc::new(Schema::parse(SCHEMA)?);
        let clock = Clock::system();
        let metrics = Arc::new(Metrics::new());
        let storage = open(&Database::Sqlite(path.into()), &settings, Arc::clone(&schema), &clock, &metrics)?;
        let app = app(schema, storage, clock, settings, metrics)?;
        let tokens = prepare(&app)?;
        std::fs::write(BODY, SYNCHRONISE).map_err(|error| format!("cannot write {BODY}: {error}"))?;
        let listener = bind_or_any(self.listen)?;
        let address = listener.local_addr()?;
        let pages = Pages { demo: Some(page_accounts(&app)?), console: true };
        run(&app, listener, pages, || {
            println!("{}", tour(address, &tokens, &console_token));
            if self.open {
                show(&format!("http://{address}/demo"));
            }
        })
    }
}

/// Asks the system for a browser. Without one the address is printed all the same.
fn show(url: &str) {
    let (opener, arguments): (_, &[&str]) = match std::env::consts::OS {
        "macos" => ("open", &[]),
        "windows" => ("cmd", &["/C", "start"]),
        _ => ("xdg-open", &[]),
    };
    let started = Command::new(opener)
        .args(arguments)
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    if let Err(error) = started {
        tracing::warn!(%error, opener, "cannot open a browser");
    }
}

fn bind_or_any(asked: SocketAddr) -> Result<TcpListener, Box<dyn std::error::Error>> {
    match TcpListener::bind(asked) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => bind(SocketAddr::new(asked.ip(), 0)),
        Err(_) => bind(asked), // fails again, and says so as `serve` does
        Ok(listener) => Ok(listener),
    }
}

/// Makes the user, the rows and the two devices; gives the devices' tokens.
fn prepare(app: &App) -> Result<[String; 2], Box<dyn std::error::Error>> {
    let accounts = app.accounts.local().ok_or("the demo keeps its own accounts")?;
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if app.storage.accounts().user(EMAIL)?.is_none() {
        let user = accounts.enrol(EMAIL, PASSWORD, None)?;
        load_rows(app, user.owner)?;
        accounts.enrol(PARTNER, PASSWORD, Some(user.owner))?;
    }
    let token = |device| {
        let asked = LogIn { email: EMAIL, password: PASSWORD, device, device_id: None };
        accounts.log_in(asked, here).map(|token| token.token)
    };
    Ok([token(DEVICES[0])?, token(DEVICES[1])?])
}

/// What the page's phones log in with.
fn page_accounts(app: &App) -> Result<DemoAccounts, Box<dyn std::error::Error>> {
    let user = app.storage.accounts().user(EMAIL)?.ok_or("the demo's data has no Anna: begin anew")?;
    let phones = PHONES.map(|(device, email)| DemoPhone {
        email: email.into(),
        password: PASSWORD.into(),
        device: device.into(),
    });
    Ok(DemoAccounts { owner: user.owner.to_string(), phones: phones.into() })
}

/// Adds the rows as a third device of the user would, in one request.
fn load_rows(app: &App, owner: Owner) -> Done {
    let batch = read_batch(ROWS.as_bytes(), &app.schema, &app.settings.limits)?;
    let terms = app.terms(DeviceId(Uuid::now_v7()), app.clock.now());
    app.storage.write(owner, |txn| synchronise::run(txn, &app.schema, &batch, &terms))?;
    Ok(())
}

/// What to paste, with the tokens of this run.
fn tour(address: SocketAddr, tokens: &[String; 2], console_token: &str) -> String {
    let [phone, tablet] = tokens;
    let [phone_name, tablet_name] = DEVICES;
    let url = format!("http://{address}");
    format!(
        r#"
Two phones, side by side in your browser:
  {url}/demo

What whoever runs the server sees of it, with the token {console_token}
  {url}/console

Or call it yourself. A wedding planner is in {DATABASE}, with a user and two devices:
  {EMAIL}, password "{PASSWORD}"
  A is "{phone_name}", B is "{tablet_name}"
Paste these into another terminal, one after the other. Ctrl-C here ends the demo.

A='Authorization: Bearer {phone}'
B='Authorization: Bearer {tablet}'
JSON='Content-Type: application/json'

# 1. A asks what the server holds. From here on A has the lock.
curl -s -H "$A" {url}/fetch.json; echo

# 2. B comes in between, and is told who is syncing and when to come back.
curl -si -H "$B" {url}/fetch.json; echo

# 3. A sends its edits and asks for two rows; each row gets a verdict. That ends A's sync.
curl -s -H "$A" -H "$JSON" --data @{BODY} {url}/synchronise.json; echo

# 4. Now B: it fetches, finds six rows that it lacks, and asks for them. B has nothing to send.
curl -s -H "$B" {url}/fetch.json?tables=budget; echo
curl -s -H "$B" -H "$JSON" --data '{{"get": {{"budget": [
  "e162cf44-f6d4-4f55-9096-242cb0d2f9a4", "725cd03b-7307-497e-912a-63ae421fb4c7",
  "edd11083-5efd-4a04-9857-2ff7d16f533f", "6d1ed956-3eb1-48d2-8de3-f1c61eb66860",
  "d9bd512f-f3c0-4aba-b3ea-e1eafb39a33a", "22971134-2de0-41ed-b1a7-ce95e5953422"]}}}}' {url}/synchronise.json; echo

# 5. Both are told the same rows. ?lock=false only reads.
curl -s -H "$A" "{url}/fetch.json?lock=false" | cksum
curl -s -H "$B" "{url}/fetch.json?lock=false" | cksum
"#
    )
}
