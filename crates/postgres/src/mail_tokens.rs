//! Tokens that were mailed to users: columns of the user's own row, so that using one changes a password in the same
//! statement.

use rollcall_core::storage::accounts::MailKind;

/// Writes a token. Parameters: user, hash, until when.
pub(super) const fn put(kind: MailKind) -> &'static str {
    match kind {
        MailKind::PasswordReset => "UPDATE rollcall_user SET reset_hash = $2, reset_until = $3 WHERE id = $1",
        MailKind::EmailVerification => {
            "UPDATE rollcall_user SET verify_hash = $2, verify_until = $3 WHERE id = $1"
        }
    }
}

/// Until when a token is good. Parameters: user, hash.
pub(super) const fn find(kind: MailKind) -> &'static str {
    match kind {
        MailKind::PasswordReset => "SELECT reset_until FROM rollcall_user WHERE id = $1 AND reset_hash = $2",
        MailKind::EmailVerification => {
            "SELECT verify_until FROM rollcall_user WHERE id = $1 AND verify_hash = $2"
        }
    }
}

/// Ends a token and does what it is for. A password that is replaced ends both tokens: either was mailed before.
/// Parameters: user, hash, new password hash or NULL, now.
pub(super) const fn spend(kind: MailKind) -> &'static str {
    match kind {
        MailKind::PasswordReset => {
            "UPDATE rollcall_user SET reset_hash = NULL, reset_until = NULL, verify_hash = NULL, \
             verify_until = NULL, password_hash = coalesce($3, password_hash), verified_at = $4 \
             WHERE id = $1 AND reset_hash = $2"
        }
        MailKind::EmailVerification => {
            "UPDATE rollcall_user SET verify_hash = NULL, verify_until = NULL, \
             password_hash = coalesce($3, password_hash), verified_at = $4 WHERE id = $1 AND verify_hash = $2"
        }
    }
}

/// Whether a token was spent by this very use. Parameters: user, new password hash or NULL, when.
pub(super) const IS_SPENT: &str = "SELECT 1 FROM rollcall_user \
     WHERE id = $1 AND verified_at = $3 AND ($2::text IS NULL OR password_hash = $2)";
