//! Instances of the schemas of a document, at random from a seed.

use serde_json::{Map, Value, json};

use crate::contract::follow;

pub struct Instances<'a> {
    doc: &'a Value,
    seed: u64,
}

impl<'a> Instances<'a> {
    pub fn of(doc: &'a Value, seed: u64) -> Self {
        Self { doc, seed }
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        // xorshift64*: enough to wander through the shapes.
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        (self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    pub fn make(&mut self, schema: &Value) -> Value {
        let schema = follow(self.doc, schema);
        if schema["nullable"] == true && self.below(4) == 0 {
            return Value::Null;
        }
        if let Some(all) = schema.get("allOf") {
            assert_eq!(all.as_array().unwrap().len(), 1, "{schema}");
            return self.make(&all[0]);
        }
        if let Some(some) = schema.get("enum").and_then(Value::as_array) {
            return some[self.below(some.len() as u64) as usize].clone();
        }
        match schema.get("type").map(|kind| kind.as_str().unwrap()) {
            Some("object") => self.object(schema),
            Some("array") => {
                let least = schema["minItems"].as_u64().unwrap_or(0);
                (0..least + self.below(3)).map(|_| self.make(&schema["items"])).collect()
            }
            Some("string") => self.text(schema).into(),
            Some("integer") => {
                let least = schema["minimum"].as_i64().unwrap_or(-1_000);
                let most = schema["maximum"].as_i64().unwrap_or(1 << 53);
                let wide = most.abs_diff(least).min(1 << 30) + 1;
                (least + i64::try_from(self.below(wide)).unwrap()).into()
            }
            Some("number") => json!(self.below(1_000) as f64 / 8.0),
            Some("boolean") => (self.below(2) == 0).into(),
            None => {
                [json!(null), json!({ "a": [1] }), json!("text"), json!(2.5)][self.below(4) as usize].clone()
            }
            Some(other) => panic!("{other}"),
        }
    }

    fn object(&mut self, schema: &Value) -> Value {
        let required: Vec<_> = schema["required"].as_array().into_iter().flatten().collect();
        let mut made = Map::new();
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            if required.iter().any(|needed| *needed == name) || self.below(2) == 0 {
                made.insert(name.clone(), self.make(schema));
            }
        }
        let least = schema["minProperties"].as_u64().unwrap_or(0) as usize;
        if let Some(others @ Value::Object(_)) = schema.get("additionalProperties") {
            while made.len() < least {
                made.insert(format!("other{}", made.len()), self.make(others));
            }
        }
        Value::Object(made)
    }

    fn text(&mut self, schema: &Value) -> String {
        let (day, hour, ms) = (1 + self.below(28), self.below(24), self.below(1_000));
        match (schema["format"].as_str(), schema["pattern"].as_str()) {
            (Some("uuid"), _) => format!("0190163e-0000-7000-8000-{:012x}", self.below(1 << 30)),
            (Some("date"), _) => format!("2013-05-{day:02}"),
            (Some("date-time"), _) => format!("2013-05-{day:02}T{hour:02}:42:50.{ms:03}Z"),
            (Some("email"), _) => "anna@example.com".into(),
            (_, Some(pattern)) if pattern.contains("T ") || pattern.contains(r"\d{2} \d{2}") => {
                format!("2013-05-{day:02} {hour:02}:42:50")
            }
            (_, Some(r"^[0-9a-f]{16}$")) => format!("{:016x}", self.below(1 << 30)),
            (_, Some(r"^[0-9a-f]{32}$")) => format!("{:032x}", self.below(1 << 30)),
            (_, Some(pattern)) => panic!("{pattern}: say what fits"),
            (_, None) => {
                let least = schema["minLength"].as_u64().unwrap_or(0);
                let most = schema["maxLength"].as_u64().unwrap_or(20).max(least);
                "é".repeat((least + self.below(most - least + 1)) as usize)
            }
        }
    }
}
