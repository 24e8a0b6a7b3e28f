//! The network between one device and the server, for the time of one sync.

use rollcall::device::{NoResponse, Remote, Request, Response};

use crate::ops::{DEVICES, GUESTS, Rng};
use crate::world::World;

pub struct Link<'a> {
    pub world: &'a mut World,
    pub device: usize,
    /// `None` is a perfect network.
    pub rng: Option<Rng>,
    /// Nothing comes through any more: the app has died.
    pub dead: bool,
    /// Syncs that began inside of others.
    pub depth: u32,
}

impl Remote for Link<'_> {
    fn send(&mut self, request: &Request) -> Result<Response, NoResponse> {
        let lost = |what: &str| Err(NoResponse(what.into()));
        if self.dead || self.world.broken.is_some() {
            return lost("the app has died");
        }
        let Some(rng) = &mut self.rng else {
            self.world.advance(7);
            return Ok(self.world.serve(self.device, request));
        };
        let mut rng = Rng(rng.next());
        self.world.advance(1 + rng.below(*rng.clone().among(&[20, 400, 20_000])) as i64);
        match rng.below(100) {
            0..6 => return lost("lost on the way there"),
            6..13 => {
                self.world.serve(self.device, request);
                return lost("lost on the way back");
            }
            13..17 => {
                // It comes twice, and either answer may be the one that arrives.
                let first = self.world.serve(self.device, request);
                let again = self.world.serve(self.device, request);
                return Ok(if rng.often(500) { first } else { again });
            }
            17..19 => {
                self.world.serve(self.device, request);
                self.world.server_crash();
                return lost("the server has died");
            }
            19..21 => {
                self.world.server_crash();
            }
            21..23 => {
                self.dead = true;
                if rng.often(500) {
                    self.world.serve(self.device, request);
                }
                return lost("the app has died");
            }
            23..31 if self.depth == 0 => {
                // Another device syncs in between, in time or after our lease has run out.
                if rng.often(500) {
                    self.world.advance(16_000);
                }
                let other = rng.below((DEVICES + GUESTS) as u64) as usize;
                self.world.sync(other, rng.often(300), None, 1);
            }
            34..38 if self.device >= DEVICES => self.world.member(self.device - DEVICES, rng.next()),
            31..34 => self.world.step_clock(self.device, rng.below(400_000) as i64 - 200_000),
            _ => {}
        }
        if self.world.broken.is_some() {
            return lost("the run has ended");
        }
        Ok(self.world.serve(self.device, request))
    }
}
