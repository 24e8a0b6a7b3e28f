use std::io::{BufRead, IsTerminal, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::database::{Database, no_database, patient_terms};
use super::{Done, account_export};
use crate::accounts::{LocalAccounts, LocalSettings, SetupError};
use crate::clock::Clock;
use crate::config::{AuthSettings, Limits, MailSettings};
use crate::mail::MailKind;
use crate::model::Precision;
use crate::storage::AccountStore;
use crate::storage::postgres;
use crate::storage::sqlite::Connections;

/// Add, list and remove the users who may log in, and set their passwords
///
/// Each of these works while a server runs on the same database.
#[derive(Debug, Subcommand)]
pub(super) enum Account {
    /// Add a user; ask for the password, or read it from standard input
    Add {
        /// Add the user with this email address
        email: String,

        /// Let the user share the rows of this one, as a couple or a team does
        #[arg(long, value_name = "EMAIL")]
        share_with: Option<String>,

        #[command(flatten)]
        database: DatabaseArg,
    },
    /// List every user, and the owner of the rows that each syncs
    List {
        #[command(flatten)]
        database: DatabaseArg,
    },
    /// Replace the password of a user and log out all of their devices; ask for it, or read it from standard input
    Password {
        /// Replace the password of the user with this email address
        email: String,

        #[command(flatten)]
        database: DatabaseArg,
    },
    /// Print a link with which a user can choose another password, once and within half an hour
    ResetLink {
        /// Make the link for the user with this email address
        email: String,

        /// Begin the link with this URL, such as `https://app.example`; without it print the token alone
        #[arg(long, env = "ROLLCALL_PUBLIC_URL", value_name = "URL")]
        public_url: Option<String>,

        #[command(flatten)]
        database: DatabaseArg,
    },
    /// Write everything that a user has to standard output, as lines: every row of each of the user's owners
    Export {
        /// Write what the user with this email address has
        email: String,

        /// Read your tables from this file, the server's own
        #[arg(long, env = "ROLLCALL_SCHEMA", value_name = "FILE")]
        schema: PathBuf,

        #[command(flatten)]
        database: DatabaseArg,
    },
    /// Erase a user with all devices, and the rows if nobody shares them; a server on the database removes the rows
    Erase {
        /// Erase the user with this email address
        email: String,

        #[command(flatten)]
        database: DatabaseArg,
    },
    /// Remove a user and log out all of their devices; the rows stay
    Remove {
        /// Remove the user with this email address
        email: String,

        #[command(flatten)]
        database: DatabaseArg,
    },
}

#[derive(Debug, Args)]
pub(super) struct DatabaseArg {
    /// Use the users of this database
    #[arg(long, env = "ROLLCALL_DATABASE", value_name = "URL", hide_env_values = true)]
    database: Database,
}

impl DatabaseArg {
    /// Opens an existing database: a mistyped path must not look like a server without users.
    fn open(&self) -> Result<Arc<dyn AccountStore>, Box<dyn std::error::Error>> {
        match &self.database {
            Database::Sqlite(path) if !path.exists() => Err(no_database(path).into()),
            _ => self.open_or_make(),
        }
    }

    /// Opens or creates a database: users may be added before the first start of the server.
    fn open_or_make(&self) -> Result<Arc<dyn AccountStore>, Box<dyn std::error::Error>> {
        Ok(match &self.database {
            Database::Sqlite(path) => Arc::new(Connections::open(path, BUSY_WAIT, 1)?),
            Database::Postgres(address) => {
                Arc::new(postgres::Connections::open(address, &patient_terms(BUSY_WAIT))?)
            }
        })
    }
}

/// How long a command waits for its turn while a server is busy.
const BUSY_WAIT: Duration = Duration::from_secs(5);

impl Account {
    pub fn run(self) -> Done {
        match self {
            Self::Add { email, share_with, database } => add(&email, share_with.as_deref(), &database),
            Self::List { database } => list(&database),
            Self::Password { email, database } => set_password(&email, &database),
            Self::ResetLink { email, public_url, database } => reset_link(&email, public_url, &database),
            Self::Export { email, schema, database } => {
                account_export::run(&kept(&email), &schema, &database.database)
            }
            Self::Erase { email, database } => erase(&email, &database),
            Self::Remove { email, database } => remove(&email, &database),
        }
    }
}

fn add(email: &str, share_with: Option<&str>, database: &DatabaseArg) -> Done {
    let (store, owner) = match share_with {
        None => (None, None),
        Some(other) => {
            let store = database.open()?;
            let user = store.user(&kept(other))?.ok_or_else(|| format!("there is no user {other}"))?;
            (Some(store), Some(user.owner))
        }
    };
    let password = read_password()?;
    let store = store.map_or_else(|| database.open_or_make(), Ok)?;
    let user = local(store)?.enrol(email, &password, owner)?;
    println!("added {}, owner {}", user.email, user.owner);
    Ok(())
}

fn list(database: &DatabaseArg) -> Done {
    let mut out = std::io::stdout().lock();
    for user in database.open()?.users()? {
        let since = user.created_at.format(Precision::Seconds);
        writeln!(out, "{}\towner {}\tsince {since}", user.email, user.owner)?;
    }
    Ok(())
}

fn set_password(email: &str, database: &DatabaseArg) -> Done {
    let accounts = local(database.open()?)?;
    let password = read_password()?;
    if !accounts.set_password(email, &password)? {
        return Err(format!("there is no user {email}").into());
    }
    println!("replaced the password of {}, and logged out all of their devices", kept(email));
    Ok(())
}

fn reset_link(email: &str, public_url: Option<String>, database: &DatabaseArg) -> Done {
    let auth = AuthSettings {
        mail: MailSettings { public_url, ..MailSettings::default() },
        ..AuthSettings::default()
    };
    let mail = local_with(database.open()?, &auth)?.mail_for(MailKind::PasswordReset, email)?;
    let mail = mail.ok_or_else(|| format!("there is no user {email}"))?;
    println!("{}", mail.link.unwrap_or(mail.token));
    Ok(())
}

fn erase(email: &str, database: &DatabaseArg) -> Done {
    if !local(database.open()?)?.erase_by_operator(email)? {
        return Err(format!("there is no user {email}").into());
    }
    println!("erased {}; a server removes the rows within the hour", kept(email));
    Ok(())
}

fn remove(email: &str, database: &DatabaseArg) -> Done {
    if !local(database.open()?)?.remove(email)? {
        return Err(format!("there is no user {email}").into());
    }
    println!("removed {}", kept(email));
    Ok(())
}

fn local(store: Arc<dyn AccountStore>) -> Result<LocalAccounts, SetupError> {
    local_with(store, &AuthSettings::default())
}

fn local_with(store: Arc<dyn AccountStore>, auth: &AuthSettings) -> Result<LocalAccounts, SetupError> {
    let settings = LocalSettings::new(auth, &Limits::default());
    LocalAccounts::new(store, Clock::system(), settings, argon2::Params::DEFAULT)
}

/// An email in its stored form.
fn kept(email: &str) -> String {
    email.trim().to_lowercase()
}

/// Prompts on a terminal, twice and hidden; otherwise reads a line, for scripts.
fn read_password() -> Result<String, Box<dyn std::error::Error>> {
    if std::io::stdin().is_terminal() {
        let password = rpassword::prompt_password("Password: ")?;
        if password != rpassword::prompt_password("Again: ")? {
            return Err("the two passwords differ".into());
        }
        return Ok(password);
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
