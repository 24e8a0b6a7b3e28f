//! The database's address, `postgres://USER:PASSWORD@HOST/DATABASE?sslmode=…`, and how connections to it are
//! secured.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use postgres::config::{Host, SslMode, TargetSessionAttrs};
use postgres::{Client, Config, NoTls};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The address of a database. Its `Display` and `Debug` hide the password.
#[derive(Clone)]
pub struct Address {
    config: Config,
    tls: Option<Arc<ClientConfig>>,
    url: String,
}

impl Address {
    /// Whether the address has settings of its own for sessions (`options`).
    pub fn has_options(&self) -> bool {
        self.config.get_options().is_some()
    }

    /// Opens a connection.
    pub fn connect(&self, wait: Duration, options: Option<&str>) -> Result<Client, postgres::Error> {
        let mut config = self.config.clone();
        if config.get_application_name().is_none() {
            config.application_name("rollcall");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(wait.max(Duration::from_secs(2)));
        }
        if let (Some(options), None) = (options, self.config.get_options()) {
            config.options(options);
        }
        match &self.tls {
            Some(tls) => config.connect(MakeRustlsConnect::new((**tls).clone())),
            None => config.connect(NoTls),
        }
    }

    /// The complete address, including the password: only for another process.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn user(&self) -> &str {
        self.config.get_user().unwrap_or("the user of this process")
    }

    pub(super) fn database(&self) -> &str {
        self.config.get_dbname().unwrap_or(self.user())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.config.get_hosts().first().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(folder) => folder.display().to_string(),
        });
        let port = self.config.get_ports().first().map(|port| format!(":{port}")).unwrap_or_default();
        write!(f, "postgres://{}{port}/{}", host.unwrap_or_default(), self.database())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
    }
}

impl Eq for Address {}

/// How the connection is secured, in libpq's terms.
enum Tls {
    Disable,
    Prefer,
    Require,
    VerifyFull,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let (place, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut tls, mut roots, mut kept) = (Tls::Prefer, None, Vec::new());
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("sslmode", "disable")) => tls = Tls::Disable,
                Some(("sslmode", "prefer")) => tls = Tls::Prefer,
                Some(("sslmode", "require")) => tls = Tls::Require,
                Some(("sslmode", "verify-full")) => tls = Tls::VerifyFull,
                Some(("sslmode", other)) => {
                    return Err(format!(
                        "there is no sslmode {other:?}; there are disable, prefer, require, verify-full"
                    ));
                }
                Some(("sslrootcert", file)) => roots = Some(decoded(file)),
                _ => kept.push(parameter),
            }
        }
        let plain = if kept.is_empty() { place.to_owned() } else { format!("{place}?{}", kept.join("&")) };
        // The text may contain a password; the error does not.
        let mut config: Config = plain.parse().map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            format!("{error}{}", cause.unwrap_or_default())
        })?;
        if config.get_hosts().is_empty() {
            config.host("localhost");
        }
        notice_death(&mut config, &kept);
        if config.get_hosts().len() > 1 && !names(&kept, "target_session_attrs") {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        config.ssl_mode(match tls {
            Tls::Disable => SslMode::Disable,
            Tls::Prefer => SslMode::Prefer,
            Tls::Require | Tls::VerifyFull => SslMode::Require,
        });
        let tls = match (tls, roots) {
            (Tls::Disable, _) => None,
            // As in libpq: if a certificate is named, it is verified.
            (_, Some(file)) => Some(verified(named_roots(&file)?)?),
            (Tls::VerifyFull, None) => Some(verified(system_roots()?)?),
            (Tls::Prefer | Tls::Require, None) => Some(unverified()?),
        };
        Ok(Self { config, tls: tls.map(Arc::new), url: url.to_owned() })
    }
}

/// A host that vanished sends nothing. The system would wait for it for a quarter of an hour, or for two
/// hours if no data is in flight. Parameters of the address override these values.
const SILENT_MAX: Duration = Duration::from_secs(15);
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// Whether the address has a parameter of that name.
fn names(given: &[&str], name: &str) -> bool {
    given.iter().any(|parameter| parameter.split('=').next() == Some(name))
}

fn notice_death(config: &mut Config, given: &[&str]) {
    if !names(given, "tcp_user_timeout") {
        config.tcp_user_timeout(SILENT_MAX);
    }
    if !names(given, "keepalives_idle") {
        config.keepalives_idle(PROBE_AFTER);
    }
    if !names(given, "keepalives_interval") {
        config.keepalives_interval(PROBE_EVERY);
    }
}

/// Decodes `%2F` and the like.
fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend_from_slice(&part.as_bytes()[2..]);
            }
            None => {
                bytes.push(b'%');
                bytes.extend_from_slice(part.as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn named_roots(file: &str) -> Result<RootCertStore, String> {
    let unreadable = |error: &dyn fmt::Display| format!("sslrootcert {file}: {error}");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| unreadable(&error))? {
        let certificate = certificate.map_err(|error| unreadable(&error))?;
        roots.add(certificate).map_err(|error| unreadable(&error))?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("the system has no root certificates; name a file by sslrootcert".into());
    }
    Ok(roots)
}

fn verified(roots: RootCertStore) -> Result<ClientConfig, String> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Encrypted, but open to anyone who poses as the server: the usual meaning of `prefer` and `require`.
fn unverified() -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let config = config.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let any = Arc::new(AnyCertificate(provider));
    Ok(config.dangerous().with_custom_certificate_verifier(any).with_no_client_auth())
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        or_unreadable(verify_tls12_signature(message, certificate, signature, algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        or_unreadable(verify_tls13_signature(message, certificate, signature, algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Takes a signature that cannot be checked since its certificate cannot be read, such as one of X.509 version 1, which
/// Citus makes for its nodes. A signature that is wrong is refused: with SCRAM's channel binding it keeps an impostor out.
fn or_unreadable(
    checked: Result<HandshakeSignatureValid, rustls::Error>,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    match checked {
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))) => {
            Ok(HandshakeSignatureValid::assertion())
        }
        checked => checked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_hosts_the_one_that_takes_writes_is_meant() {
        let wanted = |url: &str| url.parse::<Address>().unwrap().config.get_target_session_attrs();
        assert_eq!(wanted("postgres://a/app?sslmode=disable"), TargetSessionAttrs::Any);
        assert_eq!(wanted("postgres://a,b/app?sslmode=disable"), TargetSessionAttrs::ReadWrite);
        let any = "postgres://a,b/app?sslmode=disable&target_session_attrs=any";
        assert_eq!(wanted(any), TargetSessionAttrs::Any, "where the URL says so");
    }

    #[test]
    fn a_host_that_vanishes_is_noticed_unless_the_address_says_when() {
        let patience = |url: &str| {
            let config = url.parse::<Address>().unwrap().config;
            (
                config.get_tcp_user_timeout().copied(),
                config.get_keepalives_idle(),
                config.get_keepalives_interval(),
            )
        };
        let seconds = Duration::from_secs;
        let usual = (Some(SILENT_MAX), PROBE_AFTER, Some(PROBE_EVERY));
        assert_eq!(patience("postgres://db/app?sslmode=disable"), usual);
        let set =
            "postgres://db/app?sslmode=disable&tcp_user_timeout=60&keepalives_idle=90&keepalives_interval=7";
        assert_eq!(patience(set), (Some(seconds(60)), seconds(90), Some(seconds(7))));
        assert_eq!(patience("postgres://db/app?sslmode=disable&tcp_user_timeout=0").0, None, "never");
    }
}
