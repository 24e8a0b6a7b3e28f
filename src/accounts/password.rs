use argon2::{Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use parking_lot::{Condvar, Mutex};

use super::AccountError;

/// Callers that may wait for a core; some 100 ms each. More are sent away.
const QUEUE_MAX: usize = 16;

/// Argon2id in PHC strings, and a gate so that log-ins never take more than the cores there are.
pub(super) struct Passwords {
    params: Params,
    /// Stands in for the hash of an unknown account, which so costs what a known one does. No password has it.
    nobody: PasswordHash,
    gate: Gate,
}

/// What a password was checked to be.
pub(super) enum Checked {
    Wrong,
    Right,
    /// Right, and here is a hash with today's stronger parameters.
    Rehashed(String),
}

impl Passwords {
    /// Checks that passwords can be hashed with `params`; hashes none.
    pub(super) fn new(params: Params, cores: usize) -> Result<Self, argon2::password_hash::Error> {
        let (mut salt, mut output) = ([0_u8; 16], [0_u8; 32]);
        getrandom::fill(&mut salt)
            .and_then(|()| getrandom::fill(&mut output))
            .map_err(|_| argon2::password_hash::Error::RngFailure)?;
        let (salt, output) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(output));
        let (m, t, p) = (params.m_cost(), params.t_cost(), params.p_cost());
        // To make a real one would take its time and 19 MiB at every start. Checked, both cost the same.
        let nobody = PasswordHash::new(&format!("$argon2id$v=19$m={m},t={t},p={p}${salt}${output}"))?;
        Ok(Self { params, nobody, gate: Gate::new(cores.max(1), QUEUE_MAX) })
    }

    /// The PHC string of a password with a new salt.
    pub(super) fn hash(&self, password: &str) -> Result<String, AccountError> {
        let _turn = self.gate.enter()?;
        self.hashed(password)
    }

    /// Checks a password against the stored hash, or at the same cost against nothing.
    pub(super) fn check(&self, password: &str, stored: Option<&str>) -> Result<Checked, AccountError> {
        let _turn = self.gate.enter()?;
        let Some(stored) = stored else {
            let _ = Argon2::from(&self.params).verify_password(password.as_bytes(), &self.nobody);
            return Ok(Checked::Wrong);
        };
        let stored = PasswordHash::new(stored).map_err(internal)?;
        // The parameters come from the stored hash, whatever ours are.
        match Argon2::from(&self.params).verify_password(password.as_bytes(), &stored) {
            Ok(()) if self.has_grown_beyond(&stored) => self.hashed(password).map(Checked::Rehashed),
            Ok(()) => Ok(Checked::Right),
            Err(argon2::password_hash::Error::PasswordInvalid) => Ok(Checked::Wrong),
            Err(error) => Err(internal(error)),
        }
    }

    fn hashed(&self, password: &str) -> Result<String, AccountError> {
        let hash = Argon2::from(&self.params).hash_password(password.as_bytes()).map_err(internal)?;
        Ok(hash.to_string())
    }

    fn has_grown_beyond(&self, stored: &PasswordHash) -> bool {
        let ours = &self.params;
        Params::try_from(stored).map_or(true, |theirs| {
            stored.algorithm != argon2::ARGON2ID_IDENT
                || theirs.m_cost() < ours.m_cost()
                || theirs.t_cost() < ours.t_cost()
                || theirs.p_cost() < ours.p_cost()
        })
    }
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> AccountError {
    AccountError::Internal(Box::new(error))
}

/// So many at once, so many waiting, the rest sent away.
struct Gate {
    permits: usize,
    queue_max: usize,
    state: Mutex<Inside>,
    freed: Condvar,
}

#[derive(Default)]
struct Inside {
    running: usize,
    waiting: usize,
}

/// A place inside; given back when dropped, also by a panic.
struct Turn<'a>(&'a Gate);

impl Gate {
    fn new(permits: usize, queue_max: usize) -> Self {
        Self { permits, queue_max, state: Mutex::default(), freed: Condvar::new() }
    }

    fn enter(&self) -> Result<Turn<'_>, AccountError> {
        let mut inside = self.state.lock();
        if inside.running >= self.permits {
            if inside.waiting >= self.queue_max {
                return Err(AccountError::TooManyAttempts { retry_after_s: 1 });
            }
            inside.waiting += 1;
            self.freed.wait_while(&mut inside, |inside| inside.running >= self.permits);
            inside.waiting -= 1;
        }
        inside.running += 1;
        Ok(Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state.lock().running -= 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::time::{Duration, Instant};

    use super::*;

    fn cheap(t_cost: u32) -> Passwords {
        Passwords::new(Params::new(8, t_cost, 1, None).unwrap(), 2).unwrap()
    }

    #[test]
    fn a_password_is_right_wrong_or_due_for_a_stronger_hash() {
        let (weak, strong) = (cheap(1), cheap(2));
        let hash = weak.hash("correct horse").unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{hash}");
        assert_ne!(hash, weak.hash("correct horse").unwrap(), "each has a salt of its own");
        assert!(matches!(weak.check("correct horse", Some(&hash)), Ok(Checked::Right)));
        assert!(matches!(weak.check("correct horsf", Some(&hash)), Ok(Checked::Wrong)));
        assert!(matches!(strong.check("wrong", Some(&hash)), Ok(Checked::Wrong)));
        assert!(matches!(weak.check("correct horse", None), Ok(Checked::Wrong)));
        let Ok(Checked::Rehashed(stronger)) = strong.check("correct horse", Some(&hash)) else {
            panic!("not rehashed")
        };
        assert!(stronger.contains("t=2"));
        assert!(matches!(weak.check("correct horse", Some(&stronger)), Ok(Checked::Right)));
        assert!(weak.check("correct horse", Some("plain text")).is_err());
    }

    /// Goal: an unknown account cannot be told by its cost. Method: the hash that stands in for it has the
    /// parameters of a real one; times on a busy machine would prove nothing.
    #[test]
    fn an_unknown_account_costs_what_a_known_one_does() {
        let passwords = Passwords::new(Params::new(64, 3, 2, None).unwrap(), 2).unwrap();
        let real = passwords.hash("correct horse").unwrap();
        let stand_in = passwords.nobody.to_string();
        let parameters = |hash: &str| hash.splitn(5, '$').take(4).collect::<Vec<_>>().join("$");
        assert_eq!(parameters(&stand_in), parameters(&real));
        assert_eq!(parameters(&real), "$argon2id$v=19$m=64,t=3,p=2");
    }

    #[test]
    fn the_gate_lets_so_many_in_queues_so_many_and_sends_the_rest_away() {
        let gate = Gate::new(1, 2);
        let first = gate.enter().unwrap();
        std::thread::scope(|scope| {
            let queued: Vec<_> = (0..2).map(|_| scope.spawn(|| gate.enter().is_ok())).collect();
            let began = Instant::now();
            while gate.state.lock().waiting < 2 {
                assert!(began.elapsed() < Duration::from_secs(10), "nobody queued");
                std::thread::yield_now();
            }
            assert!(matches!(gate.enter(), Err(AccountError::TooManyAttempts { retry_after_s: 1 })));
            drop(first);
            assert!(queued.into_iter().all(|each| each.join().unwrap()));
        });
        assert!(gate.enter().is_ok());
    }
}
