use argon2::password_hash::phc::{Output, ParamsString, Salt};
use argon2::password_hash::{Error, Result as HashResult};
use argon2::{Algorithm, Argon2, Block, Params, PasswordHash, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use parking_lot::{Condvar, Mutex};

use super::{AccountError, opaque};

/// Bytes of the salt and of the hash in a new PHC string.
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

/// Argon2id in PHC strings, and a gate that limits how many hashes run and wait at once.
pub(super) struct Passwords {
    params: Params,
    /// Represents the hash of an unknown account, which so costs as much as a known one. No password matches
    /// it.
    nobody: PasswordHash,
    gate: Gate,
}

/// The result of checking a password.
pub(super) enum Checked {
    Wrong,
    Right,
    /// Right, with a new hash that uses the present, stronger parameters.
    Rehashed(String),
}

impl Passwords {
    /// Checks that passwords can be hashed with `params`, without hashing one.
    ///
    /// At most `hashes_max` run at once, each in memory of its own that is reused; at most `queue_max` wait
    /// for their turn, and further ones are refused.
    pub(super) fn new(params: Params, hashes_max: usize, queue_max: usize) -> HashResult<Self> {
        let (mut salt, mut output) = ([0_u8; SALT_BYTES], [0_u8; HASH_BYTES]);
        fill_randomly(&mut salt).and_then(|()| fill_randomly(&mut output))?;
        let (salt, output) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(output));
        let (m, t, p) = (params.m_cost(), params.t_cost(), params.p_cost());
        // Computing a real hash would take its time and 19 MiB at every start. When checked, both cost the
        // same.
        let nobody = PasswordHash::new(&format!("$argon2id$v=19$m={m},t={t},p={p}${salt}${output}"))?;
        Ok(Self { params, nobody, gate: Gate::new(hashes_max.max(1), queue_max) })
    }

    /// The PHC string of a password with a new salt. It is that of the password as [`opaque::prepared`] has it.
    pub(super) fn hash(&self, password: &str) -> Result<String, AccountError> {
        let mut turn = self.gate.enter()?;
        self.hashed(password, &mut turn)
    }

    /// Checks a password against the stored hash, or at the same cost against nothing.
    ///
    /// A hash of the password as it was typed counts too: before there was one form of each password, that was hashed.
    pub(super) fn check(&self, password: &str, stored: Option<&str>) -> Result<Checked, AccountError> {
        let mut turn = self.gate.enter()?;
        let form = opaque::prepared(password);
        let typed = Some(password).filter(|typed| *typed != form);
        let Some(stored) = stored else {
            let forms = std::iter::once(&*form).chain(typed);
            for form in forms {
                let _ = is_password_of(&self.nobody, form, &mut turn);
            }
            return Ok(Checked::Wrong);
        };
        let stored = PasswordHash::new(stored).map_err(internal)?;
        // The parameters come from the stored hash, whatever ours are.
        let is_right = is_password_of(&stored, &form, &mut turn).map_err(internal)?;
        let is_as_typed = match typed.filter(|_| !is_right) {
            Some(typed) => is_password_of(&stored, typed, &mut turn).map_err(internal)?,
            None => false,
        };
        match is_right || is_as_typed {
            false => Ok(Checked::Wrong),
            true if is_as_typed || self.has_grown_beyond(&stored) => {
                self.hashed(password, &mut turn).map(Checked::Rehashed)
            }
            true => Ok(Checked::Right),
        }
    }

    fn hashed(&self, password: &str, turn: &mut Turn<'_>) -> Result<String, AccountError> {
        let form = opaque::prepared(password);
        let mut made = || -> HashResult<PasswordHash> {
            let mut salt = [0_u8; SALT_BYTES];
            fill_randomly(&mut salt)?;
            let hash = argon2id(Algorithm::Argon2id, Version::V0x13, &self.params, HASH_BYTES)?;
            Ok(PasswordHash {
                algorithm: argon2::ARGON2ID_IDENT,
                version: Some(Version::V0x13.into()),
                params: ParamsString::try_from(&self.params)?,
                salt: Some(Salt::new(&salt)?),
                hash: Some(turn.run(&hash, &form, &salt, HASH_BYTES)?),
            })
        };
        made().map(|hash| hash.to_string()).map_err(internal)
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

    /// How many hashes were made since the start.
    #[cfg(test)]
    fn made(&self) -> usize {
        self.gate.state.lock().made
    }

    /// How many hashes have memory of their own now.
    #[cfg(test)]
    fn kept(&self) -> usize {
        self.gate.state.lock().free.len()
    }
}

/// Whether `password` has the stored hash.
fn is_password_of(stored: &PasswordHash, password: &str, turn: &mut Turn<'_>) -> HashResult<bool> {
    let (Some(salt), Some(expected)) = (&stored.salt, &stored.hash) else { return Err(Error::Internal) };
    let version = stored.version.map_or(Ok(Version::default()), Version::try_from)?;
    let algorithm = Algorithm::try_from(stored.algorithm.as_str())?;
    let hash = argon2id(algorithm, version, &Params::try_from(stored)?, expected.len())?;
    // `Output` compares in constant time.
    Ok(turn.run(&hash, password, salt, expected.len())? == *expected)
}

/// Argon2 with these parameters and a hash of `bytes` bytes.
fn argon2id(
    algorithm: Algorithm,
    version: Version,
    params: &Params,
    bytes: usize,
) -> HashResult<Argon2<'static>> {
    let params = Params::new(params.m_cost(), params.t_cost(), params.p_cost(), Some(bytes))?;
    Ok(Argon2::new(algorithm, version, params))
}

fn fill_randomly(bytes: &mut [u8]) -> HashResult<()> {
    getrandom::fill(bytes).map_err(|_| Error::RngFailure)
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> AccountError {
    AccountError::Internal(Box::new(error))
}

/// Limits how many hashes run and how many callers wait, and keeps the memory of hashes.
///
/// A hash needs 19 MiB. If it were freed after each hash, it would stay in the allocator's arena of that
/// thread, and there are hundreds of such threads. Kept here, the memory is at most `permits` times one hash.
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
    #[cfg(test)]
    made: usize,
    /// Memory of the hashes that do not run now.
    free: Vec<Vec<Block>>,
}

/// A place inside and the memory to hash in. Dropping it returns both, also after a panic.
struct Turn<'a> {
    gate: &'a Gate,
    blocks: Vec<Block>,
}

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
        let blocks = inside.free.pop().unwrap_or_default();
        Ok(Turn { gate: self, blocks })
    }
}

impl Turn<'_> {
    /// Hashes a password into `bytes` bytes.
    fn run(&mut self, hash: &Argon2<'_>, password: &str, salt: &[u8], bytes: usize) -> HashResult<Output> {
        #[cfg(test)]
        {
            self.gate.state.lock().made += 1;
        }
        let needed = hash.params().block_count();
        // The parameters changed: memory of another size is not kept.
        if self.blocks.len() != needed {
            self.blocks = Vec::new();
            self.blocks.try_reserve_exact(needed).map_err(|_| Error::OutOfMemory)?;
            self.blocks.resize(needed, Block::default());
        }
        let mut output = [0_u8; Output::MAX_LENGTH];
        let output = output.get_mut(..bytes).ok_or(Error::OutputSize)?;
        // Argon2 writes every block before it reads it, so remains of an earlier hash do not matter.
        hash.hash_password_into_with_memory(password.as_bytes(), salt, output, &mut self.blocks)?;
        Ok(Output::new(output)?)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut inside = self.gate.state.lock();
        inside.running -= 1;
        if !self.blocks.is_empty() {
            inside.free.push(std::mem::take(&mut self.blocks));
        }
        drop(inside);
        self.gate.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::time::{Duration, Instant};

    use argon2::{PasswordHasher as _, PasswordVerifier as _};

    use super::*;

    fn cheap(t_cost: u32) -> Passwords {
        Passwords::new(Params::new(8, t_cost, 1, None).unwrap(), 2, 16).unwrap()
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

    /// Goal: an unknown account cannot be recognised by its cost. Method: the substitute hash has the
    /// parameters of a real one; measuring times on a busy machine would prove nothing.
    #[test]
    fn an_unknown_account_costs_what_a_known_one_does() {
        let passwords = Passwords::new(Params::new(64, 3, 2, None).unwrap(), 2, 16).unwrap();
        let real = passwords.hash("correct horse").unwrap();
        let stand_in = passwords.nobody.to_string();
        let parameters = |hash: &str| hash.splitn(5, '$').take(4).collect::<Vec<_>>().join("$");
        assert_eq!(parameters(&stand_in), parameters(&real));
        assert_eq!(parameters(&real), "$argon2id$v=19$m=64,t=3,p=2");
    }

    /// Goal: an account from before there was one form of each password goes on, and unknown accounts cost as much.
    #[test]
    fn a_hash_of_a_password_as_typed_is_good_and_is_replaced() {
        let passwords = cheap(1);
        let [typed, form] = ["fru\u{308}hstu\u{308}ck", "fr\u{fc}hst\u{fc}ck"];
        let salt = b"sixteen bytes ..";
        let as_typed = Argon2::from(Params::new(8, 1, 1, None).unwrap())
            .hash_password_with_salt(typed.as_bytes(), salt)
            .unwrap()
            .to_string();
        let Ok(Checked::Rehashed(new)) = passwords.check(typed, Some(&as_typed)) else { panic!("refused") };
        assert!(matches!(passwords.check(form, Some(&as_typed)), Ok(Checked::Wrong)));
        for either in [typed, form] {
            assert!(matches!(passwords.check(either, Some(&new)), Ok(Checked::Right)), "{either:?}");
        }
        for guess in ["plain ascii", "gu\u{e9}ss", "gue\u{301}ss"] {
            let hashes = |stored| {
                let before = passwords.made();
                assert!(matches!(passwords.check(guess, stored), Ok(Checked::Wrong)));
                passwords.made() - before
            };
            assert_eq!(hashes(None), hashes(Some(&*new)), "{guess}");
        }
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

    /// Goal: hashes in reused memory equal those of the library. Method: the library's own check, of hashes
    /// made with other parameters in between.
    #[test]
    fn hashes_in_used_memory_are_those_of_the_library() {
        let passwords = Passwords::new(Params::new(64, 2, 1, None).unwrap(), 1, 0).unwrap();
        let salt = b"sixteen bytes ..";
        let library = |m, t, p| {
            let hash = Argon2::from(Params::new(m, t, p, None).unwrap());
            hash.hash_password_with_salt(b"correct horse", salt).unwrap().to_string()
        };
        for stored in [library(64, 2, 1), library(8, 1, 1), library(96, 3, 2), library(64, 2, 1)] {
            assert!(matches!(passwords.check("wrong", Some(&stored)), Ok(Checked::Wrong)), "{stored}");
            let right = passwords.check("correct horse", Some(&stored));
            assert!(matches!(right, Ok(Checked::Right | Checked::Rehashed(_))), "{stored}");
            let ours = PasswordHash::new(&passwords.hash("correct horse").unwrap()).unwrap();
            Argon2::default().verify_password(b"correct horse", &ours).unwrap();
            assert!(Argon2::default().verify_password(b"wrong", &ours).is_err());
        }
        assert_eq!(passwords.kept(), 1);
    }

    #[test]
    fn as_much_memory_is_kept_as_hashes_may_run_and_none_before_the_first() {
        let passwords = Passwords::new(Params::new(256, 1, 1, None).unwrap(), 2, 64).unwrap();
        assert_eq!(passwords.kept(), 0);
        std::thread::scope(|scope| {
            for _ in 0..32 {
                scope.spawn(|| passwords.check("wrong", None).unwrap_or(Checked::Right));
            }
        });
        assert!((1..=2).contains(&passwords.kept()), "{}", passwords.kept());
    }
}
