//! Parameter sweeps: one create that becomes many jobs, as the job factory of Batch AI's recipes makes them.
//!
//! Pure, and used by the command (to show what would be made) and by every scheduler when an entry of the log is
//! applied: the same sweep must give the same values everywhere and for ever, so nothing here may depend on anything
//! but its arguments. Random draws come from SplitMix64 with the sweep's own seed.
//!
//! Each value becomes the variable `PARAM_{name}`, and `$PARAM_{name}` and `${PARAM_{name}}` are replaced in every text
//! of the job. Names of other variables are left for the node to replace.

mod draw;
mod substitute;

use std::collections::BTreeMap;

use trainyard_proto::v1::{
    EnvironmentVariable, JobSpec, ParameterSweep, SweepMode, SweepParameter,
};

use crate::validate::{FieldViolation, MAX_RESOURCE_BYTES};

/// Most jobs of one array.
pub const MAX_JOBS: u32 = 10_000;

/// Prefix of the variables that hold the values.
pub const PREFIX: &str = "PARAM_";

/// Digits after the point where a range names none.
const DEFAULT_DECIMALS: u32 = 6;
/// A double has no more.
const MAX_DECIMALS: u32 = 15;
/// Most parameters of one sweep: each has at least one value.
const MAX_PARAMETERS: usize = 64;

/// Most bytes of all values of one sweep together.
const MAX_BYTES: usize = 16 << 20;
/// Longest value.
const MAX_VALUE_BYTES: usize = 4096;

/// Values of the parameters of one job, by name without the prefix.
pub type Values = BTreeMap<String, String>;

/// The values of each job, in order of index. The fields of violations are relative to the sweep.
pub fn expand(sweep: &ParameterSweep) -> Result<Vec<Values>, Vec<FieldViolation>> {
    let size = size(sweep)?;
    let mut jobs = Vec::new();
    let mut bytes = 0_usize;
    let mut generator = draw::SplitMix64::new(sweep.seed);
    let columns: Vec<Vec<String>> = match sweep.mode() {
        SweepMode::Random => Vec::new(),
        SweepMode::Unspecified | SweepMode::Grid | SweepMode::List => {
            sweep.parameters.iter().map(all_values).collect()
        }
    };
    for index in 0..size {
        let mut values = Values::new();
        // The last parameter of a grid changes fastest.
        let mut rest = usize::try_from(index).unwrap_or(usize::MAX);
        for position in (0..sweep.parameters.len()).rev() {
            let value = match (sweep.mode(), columns.get(position)) {
                (SweepMode::List, Some(column)) => column.get(rest).cloned(),
                (_, Some(column)) => {
                    let value = column.get(rest % column.len().max(1)).cloned();
                    rest /= column.len().max(1);
                    value
                }
                (_, None) => None,
            };
            if let (Some(value), Some(parameter)) = (value, sweep.parameters.get(position)) {
                values.insert(parameter.name.clone(), value);
            }
        }
        if sweep.mode() == SweepMode::Random {
            for parameter in &sweep.parameters {
                values.insert(parameter.name.clone(), drawn(parameter, &mut generator));
            }
        }
        bytes += values.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>();
        if bytes > MAX_BYTES {
            return Err(vec![FieldViolation {
                field: "parameters".to_owned(),
                message: format!(
                    "the values of all jobs take more than {MAX_BYTES} bytes; use shorter ones, or split the sweep"
                ),
            }]);
        }
        jobs.push(values);
    }
    Ok(jobs)
}

/// How many jobs the sweep makes, or everything that is wrong with it. Makes no values.
pub fn size(sweep: &ParameterSweep) -> Result<u32, Vec<FieldViolation>> {
    let mut wrong = Vec::new();
    let mut add = |field: String, message: &str| {
        wrong.push(FieldViolation {
            field,
            message: message.to_owned(),
        });
    };
    if SweepMode::try_from(sweep.mode).is_err() {
        add("mode".to_owned(), "write grid, list or random");
    }
    if sweep.parameters.is_empty() {
        add("parameters".to_owned(), "required; name at least one");
    } else if sweep.parameters.len() > MAX_PARAMETERS {
        add(
            "parameters".to_owned(),
            "at most 64 parameters are possible",
        );
    }
    let random = sweep.mode() == SweepMode::Random;
    let mut names = std::collections::BTreeSet::new();
    for (i, parameter) in sweep.parameters.iter().enumerate() {
        let field = format!("parameters[{i}]");
        check_parameter(parameter, random, |key, message| {
            add(format!("{field}.{key}"), message);
        });
        if !names.insert(parameter.name.as_str()) {
            add(
                format!("{field}.name"),
                "is named twice; each parameter needs its own name",
            );
        }
    }
    if random && sweep.samples == 0 {
        add(
            "samples".to_owned(),
            "required in random mode; write how many jobs to make",
        );
    } else if !random && sweep.samples != 0 {
        add(
            "samples".to_owned(),
            "has no meaning but in random mode; leave it out, or write mode random",
        );
    }
    if !random && sweep.seed != 0 {
        add(
            "seed".to_owned(),
            "has no meaning but in random mode; leave it out, or write mode random",
        );
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let counts = sweep.parameters.iter().map(values_count);
    let total = match sweep.mode() {
        SweepMode::Random => u64::from(sweep.samples),
        SweepMode::List => {
            let first = sweep.parameters.first().map_or(0, values_count);
            if let Some(i) = counts.clone().position(|count| count != first) {
                return Err(vec![FieldViolation {
                    field: format!("parameters[{i}]"),
                    message: format!(
                        "has {} values and the first parameter has {first}; in list mode all have the same number",
                        counts.clone().nth(i).unwrap_or(0)
                    ),
                }]);
            }
            first
        }
        SweepMode::Unspecified | SweepMode::Grid => counts.fold(1, u64::saturating_mul),
    };
    match u32::try_from(total) {
        Ok(size) if size <= MAX_JOBS => Ok(size),
        Ok(_) | Err(_) => Err(vec![FieldViolation {
            field: if random { "samples" } else { "parameters" }.to_owned(),
            message: format!(
                "gives {total} jobs, and at most {MAX_JOBS} are possible; split the sweep"
            ),
        }]),
    }
}

/// The job of an array with these values.
pub fn apply(template: &JobSpec, values: &Values) -> Result<JobSpec, FieldViolation> {
    let mut spec = substitute::in_every_text(template, values).ok_or_else(|| FieldViolation {
        field: String::new(),
        message: format!(
            "with the values of its parameters the job takes more than {MAX_RESOURCE_BYTES} bytes; use shorter values"
        ),
    })?;
    for (name, value) in values {
        spec.environment_variables.push(EnvironmentVariable {
            name: format!("{PREFIX}{name}"),
            value: value.clone(),
        });
    }
    Ok(spec)
}

fn check_parameter(parameter: &SweepParameter, random: bool, mut wrong: impl FnMut(&str, &str)) {
    if !is_name(&parameter.name) {
        wrong(
            "name",
            "use 1 to 64 of A-Z, 0-9 and `_`, no digit first; the prefix PARAM_ is added to it",
        );
    }
    let range = parameter.start.is_some() || parameter.end.is_some();
    if range != parameter.values.is_empty() {
        wrong("values", "write either values, or start and end");
        return;
    }
    if parameter
        .values
        .iter()
        .any(|v| v.contains('\0') || v.len() > MAX_VALUE_BYTES)
    {
        wrong(
            "values",
            "a value has at most 4096 bytes and no NUL character",
        );
    }
    if !range {
        if parameter.count != 0 || parameter.logarithmic || parameter.decimals.is_some() {
            wrong(
                "values",
                "count, logarithmic and decimals belong to a range; leave them out beside values",
            );
        }
        return;
    }
    let (Some(start), Some(end)) = (parameter.start, parameter.end) else {
        wrong("end", "a range needs start and end");
        return;
    };
    if !start.is_finite() || !end.is_finite() || !(end - start).is_finite() {
        wrong("end", "start and end must be finite numbers");
    } else if parameter.logarithmic && (start <= 0.0 || end <= 0.0) {
        wrong("start", "a logarithmic range must lie above 0");
    }
    if random && parameter.count != 0 {
        wrong("count", "has no meaning in random mode; leave it out");
    } else if !random && !(2..=MAX_JOBS).contains(&parameter.count) {
        wrong("count", "write how many values the range has, 2 to 10000");
    }
    let decimals = parameter.decimals.unwrap_or(DEFAULT_DECIMALS);
    if decimals > MAX_DECIMALS {
        wrong("decimals", "at most 15 digits are possible");
    } else if [start, end]
        .iter()
        .any(|bound| *bound != 0.0 && number(*bound, decimals).parse() == Ok(0.0))
    {
        wrong(
            "decimals",
            "so few digits turn a bound of the range into 0; ask for more",
        );
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
        && name
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

fn values_count(parameter: &SweepParameter) -> u64 {
    if parameter.values.is_empty() {
        u64::from(parameter.count)
    } else {
        u64::try_from(parameter.values.len()).unwrap_or(u64::MAX)
    }
}

fn all_values(parameter: &SweepParameter) -> Vec<String> {
    if !parameter.values.is_empty() {
        return parameter.values.clone();
    }
    let steps = f64::from(parameter.count.saturating_sub(1).max(1));
    (0..parameter.count)
        .map(|i| in_range(parameter, f64::from(i) / steps))
        .collect()
}

fn drawn(parameter: &SweepParameter, generator: &mut draw::SplitMix64) -> String {
    if parameter.values.is_empty() {
        in_range(parameter, generator.fraction())
    } else {
        let index = generator.below(parameter.values.len());
        parameter.values.get(index).cloned().unwrap_or_default()
    }
}

/// The value at this part of the way from start to end.
fn in_range(parameter: &SweepParameter, part: f64) -> String {
    let (start, end) = (
        parameter.start.unwrap_or_default(),
        parameter.end.unwrap_or_default(),
    );
    let value = if part <= 0.0 {
        start
    } else if part >= 1.0 {
        end
    } else if parameter.logarithmic {
        draw::between_logarithms(start, end, part)
    } else {
        start + (end - start) * part
    };
    match parameter.decimals {
        Some(decimals) => number(value, decimals),
        None => {
            let text = number(value, DEFAULT_DECIMALS);
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

fn number(value: f64, decimals: u32) -> String {
    let digits = usize::try_from(decimals.min(MAX_DECIMALS)).unwrap_or(0);
    let text = format!("{value:.digits$}");
    // No one wants to read `-0.00`.
    let zero = text.bytes().all(|b| matches!(b, b'-' | b'0' | b'.'));
    match text.strip_prefix('-') {
        Some(positive) if zero => positive.to_owned(),
        Some(_) | None => text,
    }
}
