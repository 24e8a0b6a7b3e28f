//! A server that cannot use its PostgreSQL database reports the reason and the remedy in one line, and exits
//! with code 1.

use rollcall_testkit::pg;
use rollcall_testkit::pg_line;
use rollcall_testkit::process;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use base64::Engine as _;
use pg_line::Line;
use process::{Ended, Process, rollcall};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

const SCHEMA: &str = "fixtures/wedding/schema.toml";

fn serve(url: &str) -> Process {
    let mut command = rollcall();
    command.args(["serve", "--schema", SCHEMA, "--listen", "127.0.0.1:0", "--log", "off"]);
    Process::start(command.args(["--database", url, "--busy-wait-ms", "500"]))
}

/// The error of a server that cannot start.
#[track_caller]
fn refusal(url: &str) -> String {
    let Ended { status, stdout, stderr } = serve(url).wait();
    assert_eq!((status.code(), stdout.as_str()), (Some(1), ""), "{stderr}");
    let line = stderr.strip_prefix("error: ").and_then(|line| line.strip_suffix('\n'));
    let line = line.unwrap_or_else(|| panic!("{stderr:?}"));
    assert!(!line.contains('\n') && !line.contains("hunter2"), "{line:?}");
    line.to_owned()
}

#[track_caller]
fn starts(url: &str) {
    serve(url).address();
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until a new connection finds the setting so.
fn until(url: &str, setting: &str, value: &str) {
    let begun = Instant::now();
    let show = format!("SHOW {setting}");
    let shown = || pg::Client::connect(url, postgres::NoTls).unwrap().query_one(&show, &[]).unwrap();
    while shown().get::<_, String>(0) != value {
        assert!(begun.elapsed() < Duration::from_secs(20), "the settings are never read");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The same certificate as one of X.509 version 1, in PEM. Its own signature no longer fits, which no server looks at.
fn of_version_1(certificate: &[u8]) -> String {
    const VERSION_3: [u8; 5] = [0xa0, 3, 2, 1, 2];
    let mut certificate = certificate.to_vec();
    let at = certificate.windows(5).position(|bytes| bytes == VERSION_3).unwrap();
    certificate[at + 4] = 0;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

const HBA: &str = "local all all trust\nhost all secret all scram-sha-256\nhost all all all trust\n";

#[test]
fn whatever_is_wrong_is_said_in_one_line() {
    let nobody = free_port();
    assert_eq!(
        refusal(&format!("postgres://rollcall@127.0.0.1:{nobody}/app")),
        format!(
            "cannot reach the database server of postgres://127.0.0.1:{nobody}/app: Connection refused (os error \
             111); is it running, and may this machine connect to it?"
        )
    );
    let Some(binaries) = pg::binaries() else {
        pg::cluster();
        return;
    };
    let port = free_port();
    let own_port = format!("port={port}");
    let server = pg::Process::start(&binaries, &["fsync=off", "listen_addresses=127.0.0.1", &own_port]);
    let inside = server.database_url("postgres");
    let mut admin = pg::Client::connect(&inside, postgres::NoTls).unwrap();
    server.write("data/pg_hba.conf", HBA);
    admin.batch_execute("CREATE ROLE secret LOGIN PASSWORD 'right'; CREATE ROLE guest LOGIN").unwrap();
    for statement in ["CREATE DATABASE app", "SELECT pg_reload_conf()"] {
        admin.batch_execute(statement).unwrap();
    }
    let url = |user: &str, rest: &str| format!("postgres://{user}@127.0.0.1:{port}/{rest}");
    let at = format!("postgres://127.0.0.1:{port}/app");

    assert_eq!(
        refusal(&url("rollcall", "apq")),
        format!(
            "there is no database \"apq\" on the server of postgres://127.0.0.1:{port}/apq; make it first: createdb apq"
        )
    );
    assert_eq!(
        refusal(&url("secret:hunter2", "app")),
        format!(
            "the database server of {at} refuses the user \"secret\": password authentication failed for user \
             \"secret\"; check user, password and sslmode in the database's URL, and the server's pg_hba.conf"
        )
    );
    let said = refusal(&url("secret", "app"));
    assert!(said.contains("password missing; check sslmode, sslrootcert and the password"), "{said}");
    let said = refusal(&url("stranger", "app"));
    assert!(said.contains("refuses the user \"stranger\": role \"stranger\" does not exist"), "{said}");
    let said = refusal(&url("guest", "app"));
    let hint = "; let the user own the database and rollcall's tables in it";
    assert!(said.starts_with("the user \"guest\" may not make or change tables in"), "{said}");
    assert!(said.ends_with(hint), "{said}");
    starts(&url("rollcall", "app"));
    // Now the tables exist, and the guest may not read them.
    let said = refusal(&url("guest", "app"));
    assert!(said.ends_with(hint), "{said}");

    let version: String = admin.query_one("SHOW server_version_num", &[]).unwrap().get(0);
    let line = Line::to(&server.database_url("app"));
    starts(&line.url());
    line.replace(&version.parse::<i32>().unwrap().to_be_bytes(), &120_022_i32.to_be_bytes());
    let said = refusal(&line.url());
    assert!(said.ends_with("/app is PostgreSQL 12; 13 or later is needed"), "{said}");

    // TLS: the server has none, then a certificate.
    let asked = ["sslmode=require", "sslmode=verify-full"];
    for query in asked {
        let said = refusal(&url("rollcall", &format!("app?{query}")));
        assert!(said.contains("does not support TLS") && said.contains("check sslmode"), "{said}");
    }
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params.clone(), KeyPair::generate().unwrap()).unwrap();
    let stranger = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let own =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let certificate = server.write("server.pem", &own.pem());
    let key = server.write("server.key", &key.serialize_pem());
    for (name, value) in [
        ("ssl_cert_file", certificate.to_str().unwrap()),
        ("ssl_key_file", key.to_str().unwrap()),
        ("ssl", "on"),
    ] {
        admin.batch_execute(&format!("ALTER SYSTEM SET {name} = '{value}'")).unwrap();
    }
    admin.batch_execute("SELECT pg_reload_conf()").unwrap();
    until(&inside, "ssl", "on");
    server.write("data/pg_hba.conf", &HBA.replace("\nhost", "\nhostssl"));
    admin.batch_execute("SELECT pg_reload_conf()").unwrap();

    // One as Citus makes for its nodes.
    let old = server.write("old.pem", &of_version_1(own.der()));
    for file in [&old, &certificate] {
        let file = file.to_str().unwrap();
        admin.batch_execute(&format!("ALTER SYSTEM SET ssl_cert_file = '{file}'")).unwrap();
        admin.batch_execute("SELECT pg_reload_conf()").unwrap();
        until(&inside, "ssl_cert_file", file);
        for query in ["app", "app?sslmode=require"] {
            starts(&url("rollcall", query));
        }
    }

    let roots = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = roots.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (ours, theirs) = (file("ours.pem", &authority.pem()), file("theirs.pem", &stranger.pem()));
    for query in
        ["", "?sslmode=prefer", "?sslmode=require", &format!("?sslmode=verify-full&sslrootcert={ours}")]
    {
        starts(&url("rollcall", &format!("app{query}")));
    }
    for query in [format!("sslrootcert={theirs}"), format!("sslmode=verify-full&sslrootcert={theirs}")] {
        let said = refusal(&url("rollcall", &format!("app?{query}")));
        assert!(said.contains("invalid peer certificate"), "{said}");
        assert!(said.contains("sslrootcert"), "{said}");
    }
    // Another name than the certificate's.
    let query = format!("app?sslmode=verify-full&sslrootcert={ours}");
    let said = refusal(&format!("postgres://rollcall@localhost:{port}/{query}"));
    assert!(said.contains("not valid for name"), "{said}");
    let said = refusal(&url("rollcall", "app?sslmode=disable"));
    assert!(said.contains("refuses the user \"rollcall\"") && said.contains("no encryption"), "{said}");
}
