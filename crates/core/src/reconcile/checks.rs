use super::{Context, Incoming, Rejection, RejectionCode};
use crate::model::Value;
use crate::schema::{Column, Table};

/// Refuses the first value that its column cannot take, whatever the row held before.
pub(super) fn check_values(table: &Table, incoming: &Incoming) -> Result<(), Rejection> {
    for (i, (column, given)) in table.columns.iter().zip(&incoming.values).enumerate() {
        let Some(value) = given else { continue };
        if value.is_null() && column.required {
            return Err(required_missing(column, i));
        }
        if let Some(length) = column.over_length(value) {
            let max = column.max_length.unwrap_or(length);
            return Err(Rejection {
                code: RejectionCode::TooLong,
                column: Some(i),
                detail: format!("{} has a length of {length}, the most is {max}", column.name),
            });
        }
    }
    Ok(())
}

/// The index of the first required column that a new row would have no value for.
pub(super) fn missing_column(table: &Table, incoming: &Incoming) -> Option<usize> {
    table
        .columns
        .iter()
        .zip(&incoming.values)
        .position(|(column, given)| column.required && column.default.is_none() && given.is_none())
}

pub(super) fn required_missing(column: &Column, index: usize) -> Rejection {
    Rejection {
        code: RejectionCode::RequiredMissing,
        column: Some(index),
        detail: format!("{} is required", column.name),
    }
}

/// Refuses a row that is larger than `row_bytes_max`.
pub(super) fn check_row_size(values: &[Value], context: &Context) -> Result<(), Rejection> {
    let bytes: usize = values.iter().map(Value::weight).sum();
    if bytes <= context.row_bytes_max {
        return Ok(());
    }
    Err(Rejection {
        code: RejectionCode::RowTooLarge,
        column: None,
        detail: format!("the row has {bytes} bytes, the most is {}", context.row_bytes_max),
    })
}
