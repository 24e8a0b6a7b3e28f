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
use crate::accounts::{LogIn, Rights};
use crate::clock::Clock;
use crate::config::{Secret, Settings, address};
use crate::dialects::Dialect;
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
/// Shares Anna's rows and uses the page's second phone.
const PARTNER: &str = "ben@example.com";
/// Plans another wedding. Anna can share a list with her.
const GUEST: &str = "eva@example.com";
const PASSWORD: &str = "something borrowed";
/// The user of the printed calls. She has rows of her own, so that the page, which may be open at the same
/// time, neither holds her lock nor changes the results of the calls.
const CALLER: &str = "clara@example.com";
const DEVICES: [&str; 2] = ["Clara's phone", "Clara's tablet"];
/// The phones of the page, and their users.
const PHONES: [(&str, &str); 2] = [("Anna’s phone", EMAIL), ("Ben’s phone", PARTNER)];

/// Long enough to show the lock's holder on the page. The printed calls hold no lock between steps.
const LEASE_MS: u64 = 120_000;

/// Serve a wedding planner with data in it: two phones in the browser, calls to try
///
/// Make rollcall-demo.db in the current folder, with a schema, its rows, some users and their devices. Print the
/// address of a page with two phones on it, and the calls of a whole sync, to paste into another terminal.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Listen on this address; if the port is taken, pick a free one
    #[arg(
        long,
        env = "ROLLCALL_LISTEN",
        value_name = "IP:PORT",
        value_parser = address,
        default_value = "127.0.0.1:7878"
    )]
    listen: SocketAddr,

    /// Go on with the data of the last demo instead of making it anew
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
        settings.dialects.dialects = Dialect::ALL.to_vec();
        let console_token = Uuid::new_v4().simple().to_string();
        settings.operator.console_token = Some(Secret::from(console_token.as_str()));
        // People who try the demo log in more often than usual, and always from this machine.
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
        // The other terminal may be in another folder.
        let body = std::path::absolute(BODY)?;
        std::fs::write(&body, SYNCHRONISE).map_err(|error| format!("cannot write {BODY}: {error}"))?;
        let listener = bind_or_any(self.listen)?;
        let address = listener.local_addr()?;
        let pages = Pages { demo: Some(page_accounts(&app)?), console: true };
        run(&app, listener, pages, || {
            println!("{}", tour(address, &tokens, &console_token, &body));
            if self.open {
                show(&format!("http://{address}/demo"));
            }
        })
    }
}

/// Opens a browser. If that fails, the address is printed nevertheless.
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

fn bind_or_any(address: SocketAddr) -> Result<TcpListener, Box<dyn std::error::Error>> {
    match TcpListener::bind(address) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => bind(SocketAddr::new(address.ip(), 0)),
        Err(_) => bind(address), // fails again, with the error message of `serve`
        Ok(listener) => Ok(listener),
    }
}

/// Creates the users and the rows; returns the tokens of the caller's two devices.
fn prepare(app: &App) -> Result<[String; 2], Box<dyn std::error::Error>> {
    let accounts = app.accounts.local().ok_or("the demo keeps its own accounts")?;
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if app.storage.accounts().user(EMAIL)?.is_none() {
        let user = accounts.enrol(EMAIL, PASSWORD, None)?;
        load_rows(app, user.owner)?;
        accounts.enrol(PARTNER, PASSWORD, Some(user.owner))?;
    }
    if app.storage.accounts().user(GUEST)?.is_none() {
        accounts.enrol(GUEST, PASSWORD, None)?;
    }
    if app.storage.accounts().user(CALLER)?.is_none() {
        load_rows(app, accounts.enrol(CALLER, PASSWORD, None)?.owner)?;
    }
    let token = |device| {
        let log_in = LogIn { email: CALLER, password: PASSWORD, device, device_id: None };
        accounts.log_in(log_in, here).map(|token| token.token)
    };
    Ok([token(DEVICES[0])?, token(DEVICES[1])?])
}

/// The accounts of the page's phones.
fn page_accounts(app: &App) -> Result<DemoAccounts, Box<dyn std::error::Error>> {
    let user = app.storage.accounts().user(EMAIL)?.ok_or("the demo's data has no Anna: begin anew")?;
    let phone = |(device, email): (&str, &str)| DemoPhone {
        email: email.into(),
        password: PASSWORD.into(),
        device: device.into(),
    };
    let guest = phone(("Eva’s phone", GUEST));
    Ok(DemoAccounts { owner: user.owner.to_string(), phones: PHONES.map(phone).into(), guest })
}

/// Adds the rows in one request, as a third device of the user.
fn load_rows(app: &App, owner: Owner) -> Done {
    let batch = read_batch(ROWS.as_bytes(), &app.schema, &app.settings.limits)?;
    let terms = app.terms(DeviceId(Uuid::now_v7()), Rights::OPERATOR, app.clock.now());
    app.storage.write(owner, |txn| synchronise::run(txn, &app.schema, &batch, &terms))?;
    Ok(())
}

/// The calls to paste, with the tokens of this run. Every line works in bash and in zsh, which supports no
/// comments on the command line and treats `?` as a pattern. The reader may wait as long as they like: no
/// step depends on the lock of the one before.
fn tour(address: SocketAddr, tokens: &[String; 2], console_token: &str, body: &Path) -> String {
    let [phone, tablet] = tokens;
    let [phone_name, tablet_name] = DEVICES;
    let url = format!("http://{address}");
    let body = body.display();
    format!(
        r#"
Two phones, side by side in your browser:
  {url}/demo

What an operator sees of the server, with the token {console_token}
  {url}/console

Or call it yourself. {CALLER} (password "{PASSWORD}") has a wedding planner of her own in {DATABASE}.
A is "{phone_name}", B is "{tablet_name}". Paste the lines of one step after the other into another terminal;
take as long as you like. Ctrl-C here ends the demo.

0. Set these first.
A='Authorization: Bearer {phone}'
B='Authorization: Bearer {tablet}'
JSON='Content-Type: application/json'

1. A fetches what the server holds, and has the lock for a while. At once B tries too, and learns who syncs.
curl -s -H "$A" {url}/fetch.json; echo; curl -si -H "$B" {url}/fetch.json; echo

2. A sends its edits and asks for two rows. Each row gets a verdict. That ends the sync of A and frees the lock.
curl -s -H "$A" -H "$JSON" --data "@{body}" {url}/synchronise.json; echo

3. Now B. It reads the list without the lock, finds six rows that it lacks, and asks for them.
curl -s -H "$B" "{url}/fetch.json?tables=budget&lock=false"; echo
curl -s -H "$B" -H "$JSON" --data '{{"get": {{"budget": [
  "e162cf44-f6d4-4f55-9096-242cb0d2f9a4", "725cd03b-7307-497e-912a-63ae421fb4c7",
  "edd11083-5efd-4a04-9857-2ff7d16f533f", "6d1ed956-3eb1-48d2-8de3-f1c61eb66860",
  "d9bd512f-f3c0-4aba-b3ea-e1eafb39a33a", "22971134-2de0-41ed-b1a7-ce95e5953422"]}}}}' {url}/synchronise.json; echo

4. Both get the same list.
curl -s -H "$A" "{url}/fetch.json?lock=false" | cksum
curl -s -H "$B" "{url}/fetch.json?lock=false" | cksum
"#
    )
}
