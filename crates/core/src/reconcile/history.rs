use super::base_state::{BaseState, Order, base_state};
use super::{Context, Incoming};
use crate::model::{EarlierState, Stored, Value};
use crate::schema::Policy;

/// What is still known of a row's past, for a change that was not made to its present state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowHistory {
    /// The row that the device began its edit with; `None` if there was none, or it is no longer known.
    pub ancestor: Option<Vec<Value>>,
    /// What other devices changed in the row since, if the last change is the device's own.
    pub foreign_edits: ForeignEdits,
    /// Whether the device's change is among the stored states. Then it was in the row once, and nothing is
    /// lost if it is sent again and not applied.
    pub was_written: bool,
}

/// What other devices changed after a device had begun its edit and before its own last change.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ForeignEdits {
    /// Nothing.
    #[default]
    None,
    /// The row as the last of them left it.
    Last(EarlierState),
    /// Their states are no longer stored.
    Forgotten,
}

impl RowHistory {
    /// Builds it from the stored states of a row, the latest first.
    pub fn new(states: &[EarlierState], stored: &Stored, incoming: &Incoming, context: &Context) -> Self {
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
        let foreign_edits = match not_own.filter(|state| state.version >= stored.created) {
            Some(state) if was_seen(state) => ForeignEdits::None,
            Some(state) => ForeignEdits::Last(state.clone()),
            None if is_whole => ForeignEdits::None,
            None => ForeignEdits::Forgotten,
        };
        Self { ancestor, foreign_edits, was_written }
    }

    /// Whether the device's change is among the stored states. No other part of the history depends on the
    /// columns and the time that the device sent.
    pub fn was_written(
        states: &[EarlierState],
        stored: &Stored,
        incoming: &Incoming,
        context: &Context,
    ) -> bool {
        match incoming.values.as_slice() {
            // A deletion leaves no state. A row that exists again was deleted once.
            [] => !stored.lifetimes.is_empty(),
            sent => states.iter().any(|state| {
                let holds =
                    |(sent, held): (&Option<Value>, &Value)| sent.as_ref().is_none_or(|sent| sent == held);
                state.changed_by == context.device
                    && state.claimed_at == incoming.claimed_at
                    && sent.iter().zip(&state.values).all(holds)
            }),
        }
    }

    /// The state that an edit is merged with under the policy `merge`, if that is not the present row: if the
    /// row's last change is the device's own, the state that other devices had left before it.
    pub fn foreign_state(
        &self,
        policy: Policy,
        stored: &Stored,
        incoming: &Incoming,
        context: &Context,
    ) -> Option<&EarlierState> {
        let base_state = base_state(stored, incoming, context);
        let merges_again = policy == Policy::Merge
            && matches!(base_state, BaseState::OwnWrite(Order::Unclear | Order::Later));
        match &self.foreign_edits {
            ForeignEdits::Last(state) if merges_again && !self.is_incomplete(stored, incoming, context) => {
                Some(state)
            }
            _ => None,
        }
    }

    /// About how many bytes it takes in memory.
    pub fn weight(&self) -> usize {
        let ancestor: usize =
            self.ancestor.iter().flatten().map(|value| size_of::<Value>() + value.weight()).sum();
        let foreign_edits = match &self.foreign_edits {
            ForeignEdits::Last(state) => state.weight(),
            ForeignEdits::None | ForeignEdits::Forgotten => 0,
        };
        size_of::<Self>() + ancestor + foreign_edits
    }

    /// Whether other devices changed the row before the device's own last change, and too little of that is
    /// stored to repeat the merge.
    pub fn is_incomplete(&self, stored: &Stored, incoming: &Incoming, context: &Context) -> bool {
        match self.foreign_edits {
            ForeignEdits::None => false,
            ForeignEdits::Forgotten => true,
            ForeignEdits::Last(_) => self.ancestor.is_none() && was_there(stored, incoming, context),
        }
    }
}

/// Whether the row existed when the device began its edit.
fn was_there(stored: &Stored, incoming: &Incoming, context: &Context) -> bool {
    incoming.base.is_some() || context.base.is_some_and(|base| stored.existed_at(base))
}

/// Whether the result for an incoming row depends on the row's [`RowHistory`].
pub fn needs_history(stored: &Stored, incoming: &Incoming, context: &Context) -> bool {
    matches!(base_state(stored, incoming, context), BaseState::Stale | BaseState::OwnWrite(_))
}
