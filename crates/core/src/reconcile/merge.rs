use std::collections::HashSet;
use std::hash::Hash;

use rust_decimal::Decimal;
use serde_json::value::RawValue;

use crate::broken;
use crate::model::Value;
use crate::schema::{Column, ColumnMerge, canonical_json};

/// The result of a merge.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// One value for each column.
    pub values: Vec<Value>,
    /// The values that lost, where both sides had changed a column that could not be merged; each at its
    /// column's index.
    pub lost: Vec<Option<Value>>,
}

/// Merges two sides of a row, column by column.
///
/// - `ancestor`: the row that both sides began with. Without it nobody knows which side changed a column, so
///   every column that differs counts as changed by both.
/// - `incoming_newer`: whether the device's edit is the later one. It decides columns that are left to
///   `newest`.
/// - `row_bytes_max`: the most that one row may weigh. Two lists that are longer together are not merged.
pub fn merge(
    columns: &[Column],
    ancestor: Option<&[Value]>,
    stored: &[Value],
    incoming: &[Option<Value>],
    incoming_newer: bool,
    row_bytes_max: usize,
) -> Merged {
    let mut lost = vec![None; columns.len()];
    let join = |(index, column): (usize, &Column)| {
        let theirs = &stored[index];
        let Some(ours) = incoming[index].as_ref().filter(|ours| *ours != theirs) else {
            return theirs.clone();
        };
        let base = ancestor.and_then(|ancestor| ancestor.get(index));
        if base == Some(theirs) {
            return ours.clone();
        }
        if base == Some(ours) {
            return theirs.clone();
        }
        // A merged list may be too long for its column, and the row must remain one that a device may send.
        let joined = joined(column.merge, base, theirs, ours, row_bytes_max)
            .filter(|value| column.over_length(value).is_none());
        joined.unwrap_or_else(|| {
            let (newest, other) = if incoming_newer { (ours, theirs) } else { (theirs, ours) };
            lost[index] = Some(other.clone());
            newest.clone()
        })
    };
    let values = columns.iter().enumerate().map(join).collect();
    Merged { values, lost }
}

/// About how many bytes of memory merging the lists of a row takes at most: see [`merge`].
pub fn union_bytes(
    columns: &[Column],
    ancestor: Option<&[Value]>,
    stored: &[Value],
    incoming: &[Option<Value>],
) -> usize {
    let lists = columns.iter().enumerate().filter(|(_, column)| column.merge == ColumnMerge::Union);
    let of_column = |(index, _): (usize, &Column)| {
        let theirs = stored.get(index)?;
        let ours = incoming.get(index)?.as_ref().filter(|ours| *ours != theirs)?;
        let base = ancestor.and_then(|ancestor| ancestor.get(index));
        let is_joined = base != Some(theirs) && base != Some(ours);
        is_joined.then(|| theirs.weight() + ours.weight() + base.map_or(0, Value::weight))
    };
    lists.filter_map(of_column).sum::<usize>() * BYTES_A_LISTED_BYTE
}

/// Memory that a list takes for each byte of its text while it is merged: an item of two bytes becomes a
/// separate text in a set.
const BYTES_A_LISTED_BYTE: usize = 8;

impl Merged {
    /// Whether either side lost a column.
    pub fn is_contested(&self) -> bool {
        self.lost.iter().any(Option::is_some)
    }
}

/// Applies a column's own rule to two values; `None` leaves the column to `newest`.
fn joined(
    rule: ColumnMerge,
    base: Option<&Value>,
    theirs: &Value,
    ours: &Value,
    row_bytes_max: usize,
) -> Option<Value> {
    match rule {
        ColumnMerge::Newest => None,
        ColumnMerge::Max => Some(if is_less(theirs, ours)? { ours } else { theirs }.clone()),
        ColumnMerge::Min => Some(if is_less(theirs, ours)? { theirs } else { ours }.clone()),
        ColumnMerge::Sum => sum(base?, theirs, ours),
        ColumnMerge::Union => union(base, theirs, ours, row_bytes_max),
    }
}

fn is_less(a: &Value, b: &Value) -> Option<bool> {
    Some(match (a, b) {
        (Value::Null, _) | (_, Value::Null) => return None, // a missing value is neither large nor small
        (Value::Integer(a), Value::Integer(b)) => a < b,
        (Value::Real(a), Value::Real(b)) => a < b,
        (Value::Decimal(a), Value::Decimal(b)) => a < b,
        (Value::Timestamp(a), Value::Timestamp(b)) => a < b,
        (Value::Date(a), Value::Date(b)) => a < b,
        _ => return None,
    })
}

/// `theirs + (ours - base)`: what each side added counts once. A sum that does not fit its type is left to
/// `newest`.
fn sum(base: &Value, theirs: &Value, ours: &Value) -> Option<Value> {
    Some(match (base, theirs, ours) {
        (Value::Integer(base), Value::Integer(theirs), Value::Integer(ours)) => {
            let sum = i128::from(*theirs) + i128::from(*ours) - i128::from(*base);
            Value::Integer(i64::try_from(sum).ok()?)
        }
        (Value::Real(base), Value::Real(theirs), Value::Real(ours)) => {
            let sum = theirs + (ours - base);
            Value::Real(if sum.is_finite() { sum } else { return None })
        }
        (Value::Decimal(base), Value::Decimal(theirs), Value::Decimal(ours)) => {
            Value::Decimal(decimal_sum(*base, *theirs, *ours)?)
        }
        _ => return None,
    })
}

/// The sum of decimals, computed with integers of their last digit. The library's own sum rounds what it
/// cannot hold.
fn decimal_sum(base: Decimal, theirs: Decimal, ours: Decimal) -> Option<Decimal> {
    let mut scale = base.scale().max(theirs.scale()).max(ours.scale());
    let indexes = |it: Decimal| it.mantissa().checked_mul(10_i128.checked_pow(scale - it.scale())?);
    let mut sum = indexes(theirs)?.checked_add(indexes(ours)?.checked_sub(indexes(base)?)?)?;
    while scale > 0 && sum % 10 == 0 {
        (sum, scale) = (sum / 10, scale - 1);
    }
    // A device could not send more digits back.
    let fits = sum.unsigned_abs() < 10_u128.pow(28);
    if fits { Decimal::try_from_i128_with_scale(sum, scale).ok() } else { None }
}

/// The items of either list, without what either side removed from the ancestor's. Theirs come first, in
/// their order.
///
/// The size is checked before anything is parsed: the merged list may be as long as both together, and the
/// row must remain one that a device may send.
fn union(base: Option<&Value>, theirs: &Value, ours: &Value, row_bytes_max: usize) -> Option<Value> {
    if theirs.weight() + ours.weight() > row_bytes_max && !broken::is("union_unbounded") {
        return None;
    }
    let base = base.map_or(Some(Vec::new()), items)?;
    let (theirs, ours) = (items(theirs)?, items(ours)?);
    let union: Vec<&str> = union_of(&base, &theirs, &ours).into_iter().map(String::as_str).collect();
    Some(Value::Json(format!("[{}]", union.join(","))))
}

/// The union of lists of any type. Items are looked up by hash, because lists as long as a row are merged in
/// the database's only writer.
fn union_of<'a, T: Hash + Eq>(base: &[T], theirs: &'a [T], ours: &'a [T]) -> Vec<&'a T> {
    let set = |list: &'a [T]| list.iter().collect::<HashSet<&T>>();
    let (in_theirs, in_ours) = (set(theirs), set(ours));
    let taken_out: HashSet<&T> =
        base.iter().filter(|item| !(in_theirs.contains(item) && in_ours.contains(item))).collect();
    let mut known_items = HashSet::with_capacity(theirs.len() + ours.len());
    theirs.iter().chain(ours).filter(|item| !taken_out.contains(item) && known_items.insert(*item)).collect()
}

/// How deep items of a list may nest that another program wrote. What devices send is bounded already.
const DEPTH_MAX: usize = 128;

/// The items of a list as canonical text, since a double cannot hold every number.
fn items(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Json(text) => {
            let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            items.into_iter().map(|item| canonical_json(item.get(), DEPTH_MAX).ok()).collect()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::schema::Schema;

    const ROW_BYTES_MAX: usize = 1_000_000;

    /// One column of that type and rule.
    fn column(kind: &str, rule: ColumnMerge, more: &str) -> Column {
        let text = format!(
            "[table.t]\nkey = \"id\"\npolicy = \"merge\"\n[table.t.columns]\n\
             c = {{ type = {kind:?}, merge = {:?}{more} }}",
            rule.name()
        );
        Schema::parse(&text).unwrap().tables()[0].columns[0].clone()
    }

    /// Merges one column; `newer` is the side that `newest` would choose.
    fn one(
        column: &Column,
        base: Option<&Value>,
        theirs: &Value,
        ours: &Value,
        newer: bool,
    ) -> (Value, bool) {
        let base = base.map(std::slice::from_ref);
        let columns = std::slice::from_ref(column);
        let incoming = [Some(ours.clone())];
        let mut merged = merge(columns, base, std::slice::from_ref(theirs), &incoming, newer, ROW_BYTES_MAX);
        let contested = merged.is_contested();
        (merged.values.remove(0), contested)
    }

    const INT: fn(i64) -> Value = Value::Integer;

    fn json(text: &str) -> Value {
        Value::Json(text.into())
    }

    fn decimal(text: &str) -> Value {
        Value::Decimal(text.parse().unwrap())
    }

    /// Base, the server's value, the device's value, and the result if the device's edit is the earlier one.
    type Row<'a> = (Option<Value>, Value, Value, Value);

    fn holds(column: &Column, rows: &[Row<'_>]) {
        for (base, theirs, ours, wanted) in rows {
            let (got, _) = one(column, base.as_ref(), theirs, ours, false);
            assert_eq!(got, *wanted, "{:?}: {base:?} {theirs:?} {ours:?}", column.merge);
        }
    }

    #[test]
    fn a_column_that_one_side_changed_is_that_sides() {
        for rule in [ColumnMerge::Newest, ColumnMerge::Max, ColumnMerge::Min, ColumnMerge::Sum] {
            let column = column("integer", rule, "");
            for newer in [false, true] {
                assert_eq!(one(&column, Some(&INT(1)), &INT(1), &INT(5), newer), (INT(5), false));
                assert_eq!(one(&column, Some(&INT(1)), &INT(5), &INT(1), newer), (INT(5), false));
                assert_eq!(one(&column, Some(&INT(1)), &Value::Null, &INT(1), newer), (Value::Null, false));
                assert_eq!(one(&column, Some(&INT(1)), &INT(1), &Value::Null, newer), (Value::Null, false));
                assert_eq!(one(&column, Some(&INT(1)), &INT(5), &INT(5), newer), (INT(5), false));
                assert_eq!(one(&column, None, &INT(5), &INT(5), newer), (INT(5), false));
            }
        }
    }

    #[test]
    fn a_column_that_is_not_sent_stays() {
        let columns = [column("integer", ColumnMerge::Sum, ""), column("integer", ColumnMerge::Newest, "")];
        let (base, theirs, ours) = ([INT(1), INT(1)], [INT(2), INT(2)], [None, Some(INT(3))]);
        let merged = merge(&columns, Some(&base), &theirs, &ours, true, ROW_BYTES_MAX);
        assert_eq!((merged.values.clone(), merged.is_contested()), (vec![INT(2), INT(3)], true));
    }

    #[test]
    fn newest_is_by_the_later_edit() {
        let column = column("text", ColumnMerge::Newest, "");
        let [base, theirs, ours] = ["a", "b", "c"].map(|text| Value::Text(text.into()));
        for base in [Some(&base), None] {
            assert_eq!(one(&column, base, &theirs, &ours, true), (ours.clone(), true));
            assert_eq!(one(&column, base, &theirs, &ours, false), (theirs.clone(), true));
        }
    }

    #[test]
    fn max_and_min_need_no_ancestor_and_compare_values_only() {
        for base in [None, Some(INT(2))] {
            holds(
                &column("integer", ColumnMerge::Max, ""),
                &[
                    (base.clone(), INT(3), INT(5), INT(5)),
                    (base.clone(), INT(5), INT(3), INT(5)),
                    (base.clone(), INT(-5), INT(-3), INT(-3)),
                    (base.clone(), Value::Null, INT(3), Value::Null), // left to newest
                ],
            );
            holds(
                &column("integer", ColumnMerge::Min, ""),
                &[
                    (base.clone(), INT(3), INT(5), INT(3)),
                    (base.clone(), INT(5), INT(3), INT(3)),
                    (base.clone(), INT(3), Value::Null, INT(3)), // left to newest
                ],
            );
        }
        holds(
            &column("decimal", ColumnMerge::Max, ""),
            &[(None, decimal("9.5"), decimal("10"), decimal("10"))],
        );
        holds(
            &column("real", ColumnMerge::Min, ""),
            &[(None, Value::Real(0.5), Value::Real(-0.5), Value::Real(-0.5))],
        );
        let day = |d| Value::Date(jiff::civil::date(2024, 5, d));
        holds(&column("date", ColumnMerge::Max, ""), &[(None, day(1), day(2), day(2))]);
    }

    #[test]
    fn sum_counts_what_each_side_added_once() {
        holds(
            &column("integer", ColumnMerge::Sum, ""),
            &[
                (Some(INT(10)), INT(15), INT(11), INT(16)),
                (Some(INT(10)), INT(5), INT(12), INT(7)),
                (None, INT(15), INT(11), INT(15)), // without an ancestor the added amount is unknown
                (Some(Value::Null), INT(15), INT(11), INT(15)),
                (Some(INT(10)), Value::Null, INT(11), Value::Null),
                (Some(INT(10)), INT(11), Value::Null, INT(11)),
                (Some(INT(0)), INT(i64::MAX), INT(1), INT(i64::MAX)), // what does not fit is left to newest
                (Some(INT(-1)), INT(i64::MIN), INT(i64::MIN), INT(i64::MIN)),
                (Some(INT(i64::MAX)), INT(i64::MIN), INT(i64::MAX - 1), INT(i64::MIN)),
                (Some(INT(i64::MIN)), INT(-1), INT(0), INT(i64::MAX)),
            ],
        );
        holds(
            &column("decimal", ColumnMerge::Sum, ""),
            &[
                (Some(decimal("0.10")), decimal("0.30"), decimal("0.15"), decimal("0.35")),
                (Some(decimal("1")), decimal("1.5"), decimal("0.5"), decimal("1")),
            ],
        );
        holds(
            &column("real", ColumnMerge::Sum, ""),
            &[
                (Some(Value::Real(1.0)), Value::Real(1.5), Value::Real(2.0), Value::Real(2.5)),
                (Some(Value::Real(0.0)), Value::Real(f64::MAX), Value::Real(f64::MAX), Value::Real(f64::MAX)),
                (
                    Some(Value::Real(0.0)),
                    Value::Real(f64::MAX),
                    Value::Real(f64::MAX / 2.0),
                    Value::Real(f64::MAX),
                ),
            ],
        );
    }

    /// Goal: a merged decimal is exact or not merged, and a device can always send it back.
    #[test]
    fn a_sum_that_is_not_exact_is_left_to_newest() {
        let column = column("decimal", ColumnMerge::Sum, "");
        let large = decimal("9999999999999999999999999999"); // 28 digits, the most that the wire takes
        let tiny = decimal("0.0000000000000000000000000001");
        holds(
            &column,
            &[
                (Some(decimal("0")), large.clone(), decimal("1"), large.clone()),
                (Some(decimal("0")), large.clone(), tiny.clone(), large.clone()),
                (Some(tiny), large.clone(), decimal("0"), large.clone()),
                (Some(decimal("0")), decimal("9999999999999999999999999998"), decimal("1"), large),
            ],
        );
    }

    #[test]
    fn union_has_what_either_holds_less_what_either_took_out() {
        holds(
            &column("json", ColumnMerge::Union, ""),
            &[
                (
                    Some(json(r#"["a"]"#)),
                    json(r#"["a","b"]"#),
                    json(r#"["a","c"]"#),
                    json(r#"["a","b","c"]"#),
                ),
                (
                    Some(json(r#"["a","b"]"#)),
                    json(r#"["b","x"]"#),
                    json(r#"["a","y"]"#),
                    json(r#"["x","y"]"#),
                ),
                (
                    Some(json(r#"["a","b"]"#)),
                    json(r#"["b"]"#),
                    json(r#"["a","b","c"]"#),
                    json(r#"["b","c"]"#),
                ),
                (Some(json("[]")), json(r#"["a","a"]"#), json(r#"["a","b","b"]"#), json(r#"["a","b"]"#)),
                (None, json(r#"["a"]"#), json(r#"["b"]"#), json(r#"["a","b"]"#)),
                (None, json(r#"[{"a":1}]"#), json(r#"[{"a":1},1,"1"]"#), json(r#"[{"a":1},1,"1"]"#)),
                (Some(Value::Null), Value::Null, json(r#"["b"]"#), json(r#"["b"]"#)),
                // Compared digit by digit: as doubles the first two would be equal.
                (
                    Some(json("[]")),
                    json("[123456789012345678901234567890,1.0]"),
                    json("[123456789012345678901234567891,1.0,1e2]"),
                    json("[123456789012345678901234567890,1.0,123456789012345678901234567891,1e2]"),
                ),
                (Some(json(r#"["a"]"#)), Value::Null, json(r#"["a","b"]"#), json(r#"["b"]"#)),
                (Some(json(r#"["a"]"#)), json(r#"["a","b"]"#), Value::Null, json(r#"["b"]"#)),
                // A value that is not a list is left to newest.
                (Some(json("[]")), json(r#"{"a":1}"#), json(r#"["b"]"#), json(r#"{"a":1}"#)),
                (Some(json("[]")), json(r#"["a"]"#), json("7"), json(r#"["a"]"#)),
                (Some(json("7")), json(r#"["a"]"#), json(r#"["b"]"#), json(r#"["a"]"#)),
            ],
        );
    }

    /// Goal: a merge creates no row that the schema would refuse from a device.
    #[test]
    fn a_union_that_is_too_long_is_left_to_newest() {
        let column = column("json", ColumnMerge::Union, ", max_length = 10");
        holds(
            &column,
            &[
                (None, json(r#"["aaa"]"#), json(r#"["bbb"]"#), json(r#"["aaa"]"#)),
                (None, json(r#"["a"]"#), json(r#"["b"]"#), json(r#"["a","b"]"#)),
            ],
        );
    }

    thread_local! {
        static COMPARED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    }

    /// An item that counts how often it is compared with another.
    #[derive(Debug, Eq)]
    struct Item(u32);

    impl PartialEq for Item {
        fn eq(&self, other: &Self) -> bool {
            COMPARED.set(COMPARED.get() + 1);
            self.0 == other.0
        }
    }

    impl Hash for Item {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }

    /// Goal: merging long lists takes time in proportion to their length. Method: comparisons are counted for
    /// two lists of 20,000 and an ancestor that differ everywhere.
    #[test]
    fn a_union_compares_each_item_a_few_times() {
        let list = |numbers: std::ops::Range<u32>| numbers.map(Item).collect::<Vec<_>>();
        let (base, theirs, ours) = (list(0..20_000), list(10_000..30_000), list(15_000..35_000));
        COMPARED.set(0);
        let union = union_of(&base, &theirs, &ours);
        let compared = COMPARED.get();
        let numbers: Vec<u32> = union.iter().map(|item| item.0).collect();
        assert_eq!(numbers, (15_000..35_000).collect::<Vec<_>>());
        assert!(compared < 8 * 20_000, "{compared} comparisons");
    }

    fn list() -> impl Strategy<Value = Value> {
        let items = proptest::collection::vec(0..6_u8, 0..5);
        prop_oneof![1 => Just(Value::Null), 5 => items.prop_map(|items| json(&serde_json::to_string(&items).unwrap()))]
    }

    fn number() -> impl Strategy<Value = Value> {
        prop_oneof![
            1 => Just(Value::Null),
            6 => (-9..9_i64).prop_map(INT),
            1 => any::<i64>().prop_map(INT),
        ]
    }

    fn exact() -> impl Strategy<Value = Value> {
        (any::<i64>(), 0..20_u32).prop_map(|(n, scale)| Value::Decimal(Decimal::new(n, scale)))
    }

    /// A list's items, whatever their order.
    fn as_set(value: &Value) -> Vec<String> {
        let mut items = items(value).unwrap();
        items.sort();
        items
    }

    proptest! {
        /// The order of the sides does not matter where both have values to compare.
        #[test]
        fn rules_commute(base in proptest::option::of(number()), a in number(), b in number()) {
            for rule in [ColumnMerge::Max, ColumnMerge::Min, ColumnMerge::Sum, ColumnMerge::Newest] {
                let column = column("integer", rule, "");
                // The later edit is b's in both orders.
                let ab = one(&column, base.as_ref(), &a, &b, true);
                let ba = one(&column, base.as_ref(), &b, &a, false);
                prop_assert_eq!(ab, ba, "{:?}", rule);
            }
        }

        #[test]
        fn unions_commute(base in proptest::option::of(list()), a in list(), b in list()) {
            let column = column("json", ColumnMerge::Union, "");
            let (ab, _) = one(&column, base.as_ref(), &a, &b, true);
            let (ba, _) = one(&column, base.as_ref(), &b, &a, false);
            prop_assert_eq!(as_set(&ab), as_set(&ba));
            let known_items = [as_set(&a), as_set(&b)].concat();
            prop_assert!(as_set(&ab).iter().all(|item| known_items.contains(item)), "an item out of nowhere");
        }

        /// Only a sum and a union create new values: every other value comes from one of the two sides.
        #[test]
        fn no_value_is_invented(base in proptest::option::of(number()), a in number(), b in number(), newer: bool) {
            for rule in [ColumnMerge::Max, ColumnMerge::Min, ColumnMerge::Newest] {
                let (got, _) = one(&column("integer", rule, ""), base.as_ref(), &a, &b, newer);
                prop_assert!(got == a || got == b);
            }
            let (got, contested) = one(&column("integer", ColumnMerge::Sum, ""), base.as_ref(), &a, &b, newer);
            let both_changed = base.as_ref().is_some_and(|base| *base != a && *base != b && a != b);
            if contested || !both_changed {
                prop_assert!(got == a || got == b);
            }
        }

        #[test]
        fn sums_of_decimals_are_exact_or_left(base in exact(), a in exact(), b in exact()) {
            let column = column("decimal", ColumnMerge::Sum, "");
            let (ab, _) = one(&column, Some(&base), &a, &b, true);
            let (ba, _) = one(&column, Some(&base), &b, &a, false);
            prop_assert_eq!(&ab, &ba);
            if let Value::Decimal(sum) = &ab {
                // The wire reads back what was written.
                let seed = crate::schema::ValueSeed {
                    column: &column,
                    precision: crate::model::Precision::Milliseconds,
                    json_depth_max: 1,
                };
                use serde::de::DeserializeSeed as _;
                let back = seed.deserialize(serde_json::Value::String(sum.to_string())).unwrap();
                prop_assert_eq!(&back, &ab);
            }
        }
    }
}
