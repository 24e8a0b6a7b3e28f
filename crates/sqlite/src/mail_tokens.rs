//! Tokens that were mailed to users: columns of the user's own row, so that using one changes a password in the same
//! statement.

use rusqlite::{Connection, OptionalExtension as _, params};
use uuid::Uuid;

use super::accounts;
use rollcall_core::model::{DeviceId, Timestamp};
use rollcall_core::storage::accounts::{MailKind, MailToken, MailTokenUse, TokenHash};

const PUT: [&str; 2] = [
    "UPDATE rollcall_user SET reset_hash = ?2, reset_until = ?3 WHERE id = ?1",
    "UPDATE rollcall_user SET verify_hash = ?2, verify_until = ?3 WHERE id = ?1",
];
const FIND: [&str; 2] = [
    "SELECT reset_until FROM rollcall_user WHERE id = ?1 AND reset_hash = ?2",
    "SELECT verify_until FROM rollcall_user WHERE id = ?1 AND verify_hash = ?2",
];
/// A password that is replaced ends both tokens: either was mailed before.
const SPEND: [&str; 2] = [
    "UPDATE rollcall_user SET reset_hash = NULL, reset_until = NULL, verify_hash = NULL, verify_until = NULL, \
     password_hash = coalesce(?3, password_hash), verified_at = ?4 WHERE id = ?1 AND reset_hash = ?2",
    "UPDATE rollcall_user SET verify_hash = NULL, verify_until = NULL, \
     password_hash = coalesce(?3, password_hash), verified_at = ?4 WHERE id = ?1 AND verify_hash = ?2",
];

fn of(kind: MailKind, [reset, verification]: [&'static str; 2]) -> &'static str {
    match kind {
        MailKind::PasswordReset => reset,
        MailKind::EmailVerification => verification,
    }
}

/// Writes a token in place of an older one of the same kind.
pub(super) fn put(conn: &Connection, token: &MailToken) -> rusqlite::Result<()> {
    let params = params![token.user.as_bytes(), token.hash, token.expires_at.ms()];
    conn.prepare_cached(of(token.kind, PUT))?.execute(params).map(drop)
}

/// The token of a user, if it has this hash.
pub(super) fn find(
    conn: &Connection,
    kind: MailKind,
    user: Uuid,
    hash: &TokenHash,
) -> rusqlite::Result<Option<MailToken>> {
    let mut statement = conn.prepare_cached(of(kind, FIND))?;
    let found = statement.query_row(params![user.as_bytes(), hash], |row| {
        Ok(MailToken { user, kind, hash: *hash, expires_at: Timestamp::from_ms(row.get(0)?) })
    });
    found.optional()
}

/// Ends a token and does what it is for; `None` if it has ended already. Within a transaction.
pub(super) fn spend(conn: &Connection, used: &MailTokenUse<'_>) -> rusqlite::Result<Option<Vec<DeviceId>>> {
    let MailTokenUse { token, password_hash, at } = *used;
    let params = params![token.user.as_bytes(), token.hash, password_hash, at.ms()];
    if conn.prepare_cached(of(token.kind, SPEND))?.execute(params)? == 0 {
        return Ok(None);
    }
    accounts::remove_other_devices(conn, token.user, DeviceId(Uuid::nil())).map(Some)
}
