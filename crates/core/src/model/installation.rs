use uuid::Uuid;

/// How an installation names itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstallationName {
    /// Created by the installation, or adopted from a response.
    pub id: Uuid,
    /// How many of its requests were answered with success; within 2^53.
    pub counter: u64,
}

/// The highest counter that fits into every client's numbers.
const COUNTER_MAX: u64 = (1 << 53) - 1;

impl InstallationName {
    /// Reads the header's value.
    pub fn read(text: &str) -> Option<Self> {
        let (id, counter) = text.trim().split_once('.')?;
        let id = if id.len() == 36 { Uuid::try_parse(id).ok()? } else { return None };
        let is_number = !counter.is_empty() && counter.bytes().all(|byte| byte.is_ascii_digit());
        let counter = if is_number { counter.parse().ok()? } else { return None };
        (!id.is_nil() && counter <= COUNTER_MAX).then_some(Self { id, counter })
    }
}

impl InstallationName {
    /// The name after one more response.
    pub fn next(self) -> Self {
        Self { counter: (self.counter + 1).min(COUNTER_MAX), ..self }
    }
}

impl std::fmt::Display for InstallationName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.id, self.counter)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_a_uuid_and_a_number() {
        let text = "0190163d-8694-739b-aea5-966c26f8ad90.17";
        let named = InstallationName::read(text).unwrap();
        assert_eq!((named.to_string().as_str(), named.counter), (text, 17));
        assert_eq!(InstallationName::read(&text.to_uppercase()), Some(named));
        let id = &text[..36];
        for wrong in [
            "",
            "17",
            id,
            &format!("{id}."),
            &format!("{id}.-1"),
            &format!("{id}.+1"),
            &format!("{id}.1.2"),
            &format!("{id}.9007199254740992"),
            &format!("{id}.99999999999999999999"),
            &format!("{id} 17"),
            "0190163d8694739baea5966c26f8ad90.17",
            "00000000-0000-0000-0000-000000000000.1",
        ] {
            assert_eq!(InstallationName::read(wrong), None, "{wrong:?}");
        }
    }
}
