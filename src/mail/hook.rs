use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Mail;

/// How often a command that runs is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Sends one mail.
pub type Sender = Box<dyn Fn(&Mail) -> Result<(), HookError> + Send>;

/// How a mail is handed over.
pub enum Hook {
    /// A program gets it as one line of JSON on its standard input.
    Command {
        /// The program and its arguments; no shell reads them.
        argv: Vec<String>,
        /// How long the program may run.
        timeout: Duration,
    },
    /// A URL gets it as the JSON body of a POST.
    Webhook {
        /// Where it goes.
        url: String,
        /// Sent as `Authorization: Bearer`, if there is one.
        token: Option<String>,
        /// Sends it; its timeout is that of a mail.
        agent: ureq::Agent,
    },
    /// Something else, for tests.
    Other(Sender),
}

/// Why a mail was not handed over.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The program cannot be started.
    #[error("the mail command cannot be started: {0}")]
    Start(std::io::Error),
    /// The program ended, and not well.
    #[error("the mail command ended with {0}")]
    Failed(std::process::ExitStatus),
    /// The program ran for too long, and was ended.
    #[error("the mail command did not end within {0:?}")]
    TooLong(Duration),
    /// The webhook cannot be reached, or answers with a status of 400 and above.
    #[error("the mail webhook failed: {0}")]
    Webhook(Box<ureq::Error>),
    /// The webhook answers with another status than 200 to 299.
    #[error("the mail webhook answered with the status {0}")]
    Status(u16),
    /// The mail cannot be written as JSON.
    #[error("the mail cannot be written: {0}")]
    Json(#[from] serde_json::Error),
}

impl Hook {
    /// A webhook. A redirect counts as a failure: the token goes to that URL alone.
    pub fn webhook(url: String, token: Option<String>, timeout: Duration) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(timeout)).max_redirects(0).build();
        Self::Webhook { url, token, agent: config.into() }
    }

    /// Hands one mail over, and waits until that is done.
    pub fn send(&self, mail: &Mail) -> Result<(), HookError> {
        match self {
            Self::Command { argv, timeout } => run(argv, *timeout, mail),
            Self::Webhook { url, token, agent } => {
                let body = serde_json::to_vec(mail)?;
                let mut request = agent.post(url).header("content-type", "application/json");
                if let Some(token) = token {
                    request = request.header("authorization", format!("Bearer {token}"));
                }
                let response =
                    request.send(&body[..]).map_err(|error| HookError::Webhook(Box::new(error)))?;
                let status = response.status();
                if status.is_success() { Ok(()) } else { Err(HookError::Status(status.as_u16())) }
            }
            Self::Other(send) => send(mail),
        }
    }
}

/// Runs the command over one mail. It does not see the server's own settings: one may be a password.
fn run(argv: &[String], timeout: Duration, mail: &Mail) -> Result<(), HookError> {
    let mut words = argv.iter();
    let mut command = Command::new(words.next().map_or("", String::as_str));
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ROLLCALL_") {
            command.env_remove(name);
        }
    }
    let mut line = serde_json::to_vec(mail)?;
    line.push(b'\n');
    let mut child = command.spawn().map_err(HookError::Start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // The line fits into a pipe. A program that ends without reading says by its status whether that was meant.
        let _ = stdin.write_all(&line);
    }
    let began = Instant::now();
    loop {
        match child.try_wait().map_err(HookError::Start)? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(HookError::Failed(status)),
            None if began.elapsed() >= timeout => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(HookError::TooLong(timeout));
            }
            None => std::thread::sleep(LOOK),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::mail::MailKind;

    fn mail() -> Mail {
        Mail {
            kind: MailKind::PasswordReset,
            to: "anna@example.org".into(),
            link: Some("https://app.example/reset#rt_x".into()),
            token: "rt_x".into(),
            expires_at: "2026-01-01T00:00:00Z".into(),
        }
    }

    fn command(words: &[&str]) -> Hook {
        let argv = words.iter().map(|word| (*word).to_owned()).collect();
        Hook::Command { argv, timeout: Duration::from_millis(500) }
    }

    #[test]
    fn a_command_gets_the_mail_as_a_line_and_no_shell_reads_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("$(touch x); mail");
        let file = file.to_str().unwrap();
        command(&["tee", file]).send(&mail()).unwrap();
        let written = std::fs::read_to_string(file).unwrap();
        assert_eq!(written.lines().count(), 1);
        let read: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert_eq!(read["kind"], "password_reset");
        assert_eq!(read["to"], "anna@example.org");
        assert_eq!(read["link"], "https://app.example/reset#rt_x");
    }

    #[test]
    fn a_command_that_fails_hangs_or_is_not_there_is_reported() {
        assert!(matches!(command(&["false"]).send(&mail()), Err(HookError::Failed(_))));
        assert!(matches!(command(&["sleep", "60"]).send(&mail()), Err(HookError::TooLong(_))));
        assert!(matches!(command(&["/no/such/program"]).send(&mail()), Err(HookError::Start(_))));
    }

    /// Goal: the URL gets the mail with the token, and a status that is no success counts as a failure.
    #[test]
    fn a_webhook_gets_the_mail_as_a_body() {
        use std::io::{BufRead as _, BufReader, Read as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/mail", listener.local_addr().unwrap());
        let served = std::thread::spawn(move || {
            let answers = ["204 No Content", "302 Found\r\nLocation: http://127.0.0.1:1/", "500 Oh"];
            answers.map(|status| {
                let (mut socket, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(socket.try_clone().unwrap());
                let (mut head, mut length) = (String::new(), 0);
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    let lower = line.to_lowercase();
                    if let Some(value) = lower.strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    head += &lower;
                    if line == "\r\n" {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                write!(socket, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    .unwrap();
                (head, body)
            })
        });
        let hook = Hook::webhook(url, Some("secret".into()), Duration::from_secs(10));
        hook.send(&mail()).unwrap();
        assert!(matches!(hook.send(&mail()), Err(HookError::Status(302))));
        assert!(matches!(hook.send(&mail()), Err(HookError::Webhook(_))));
        for (head, body) in served.join().unwrap() {
            assert!(
                head.starts_with("post /mail ") && head.contains("authorization: bearer secret"),
                "{head}"
            );
            let read: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(read["token"], "rt_x");
        }
    }
}
