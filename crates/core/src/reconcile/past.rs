use super::seen::{Seen, Turn, seen};
use super::{Context, Incoming};
use crate::model::{EarlierState, Stored, Value};
use crate::schema::Policy;

/// What a change that was not made on a row's present state needs to know of the row's past.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past {
    /// The row that the device began its edit with; `None` if there was none, or it is no longer known.
    pub ancestor: Option<Vec<Value>>,
    /// What others made of the row since, where the last change is the device's own.
    pub others: Others,
    /// Whether the device's change is among the states that are remembered: it was in the row once, so nothing is
    /// lost if it comes again and is not applied.
    pub was_written: bool,
}

/// What others made of a row after a device had begun its edit, and before the device's own last change.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Others {
    /// Nothing.
    #[default]
    Nothing,
    /// The row as the last of them left it.
    Left(EarlierState),
    /// Nobody knows any more.
    Forgotten,
}

impl Past {
    /// Finds it in the states of a row that are still remembered, the latest first.
    pub fn of(states: Vec<EarlierState>, stored: &Stored, incoming: &Incoming, context: &Context) -> Self {
        Self::among(&states, stored, incoming, context)
    }

    /// The same, of states that are looked at again.
    pub fn among(states: &[EarlierState], stored: &Stored, incoming: &Incoming, context: &Context) -> Self {
        let was_seen = |state: &EarlierState| match (incoming.base, context.base) {
            (Some(base), _) => state.last_update <= base.truncated(context.precision),
            (None, Some(base)) => state.version <= base,
            (None, None) => false,
        };
        let began_with = |state: &EarlierState| match incoming.base {
            Some(base) => state.last_update == base.truncated(context.precision),
            None => was_seen(state),
        };
        let was_there = was_there(stored, incoming, context);
        let ancestor = states.iter().find(|state| was_there && began_with(state));
        let ancestor = ancestor.map(|state| state.values.clone());

        let was_written = Self::was_written(states, stored, incoming, context);
        let is_whole = stored.version == stored.created
            || states.last().is_some_and(|oldest| oldest.version <= stored.created);
        let not_own = states.iter().find(|state| state.changed_by != stored.changed_by || was_seen(state));
        let others = match not_own.filter(|state| state.version >= stored.created) {
            Some(state) if was_seen(state) => Others::Nothing,
            Some(state) => Others::Left(state.clone()),
            None if is_whole => Others::Nothing,
            None => Others::Forgotten,
        };
        Self { ancestor, others, was_written }
    }

    /// Whether the device's change is among the states that are remembered. Nothing else of the past depends on the
    /// columns and the time that the device sent.
    pub fn was_written(
        states: &[EarlierState],
        stored: &Stored,
        incoming: &Incoming,
        context: &Context,
    ) -> bool {
        match incoming.values.as_slice() {
            // A deletion leaves no state; a row that lives again was deleted once.
            [] => !stored.lives.is_empty(),
            sent => states.iter().any(|state| {
                let holds =
                    |(sent, held): (&Option<Value>, &Value)| sent.as_ref().is_none_or(|sent| sent == held);
                state.changed_by == context.device
                    && state.claimed_at == incoming.claimed_at
                    && sent.iter().zip(&state.values).all(holds)
            }),
        }
    }

    /// What an edit is merged with under the policy `merge`, if that is not the row as it is now: where the row's last
    /// change is the device's own, what others had left before it. To merge with that once more from the start counts a change once,
    /// however often it is sent.
    pub fn beneath(
        &self,
        policy: Policy,
        stored: &Stored,
        incoming: &Incoming,
        context: &Context,
    ) -> Option<&EarlierState> {
        let merges = policy == Policy::Merge
            && matches!(seen(stored, incoming, context), Seen::Own(Turn::Unclear | Turn::Newer));
        match &self.others {
            Others::Left(state) if merges && !self.is_forgotten(stored, incoming, context) => Some(state),
            _ => None,
        }
    }

    /// About how many bytes it takes in memory.
    pub fn weight(&self) -> usize {
        let ancestor: usize =
            self.ancestor.iter().flatten().map(|value| size_of::<Value>() + value.weight()).sum();
        let others = match &self.others {
            Others::Left(state) => state.weight(),
            Others::Nothing | Others::Forgotten => 0,
        };
        size_of::<Self>() + ancestor + others
    }

    /// Whether others changed the row before the device's own last change, and too little of that is known to
    /// work out once more what came of it.
    pub fn is_forgotten(&self, stored: &Stored, incoming: &Incoming, context: &Context) -> bool {
        match self.others {
            Others::Nothing => false,
            Others::Forgotten => true,
            Others::Left(..) => self.ancestor.is_none() && was_there(stored, incoming, context),
        }
    }
}

/// Whether there was a row when the device began its edit: a device that had seen it deleted began with nothing.
fn was_there(stored: &Stored, incoming: &Incoming, context: &Context) -> bool {
    incoming.base.is_some() || context.base.is_some_and(|base| stored.existed_at(base))
}

/// Whether what becomes of an incoming row depends on the row's [`Past`].
pub fn needs_past(stored: &Stored, incoming: &Incoming, context: &Context) -> bool {
    matches!(seen(stored, incoming, context), Seen::Earlier | Seen::Own(_))
}
