//! Parameters of an array of jobs from flags: `--param NAME=a,b,c` and `--param NAME=START:END[:COUNT][:log]`. Pure.

use clap::{Args, ValueEnum};
use trainyard_proto::v1::{ParameterSweep, SweepMode, SweepParameter};

use crate::error::Error;

/// How `--param` is written.
const FORM: &str = "write NAME=VALUE,VALUE,... or NAME=START:END[:COUNT][:log]";

/// Fields that flags have given, each with its flag.
pub(super) type Given = Vec<(String, String)>;

/// Flags that make one create many jobs.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Arrays")]
pub(super) struct SweepArgs {
    /// Make one job per value: variable PARAM_NAME, and $PARAM_NAME in every text of the job file. A list, or a range
    /// START:END:COUNT with its ends (`:log` divides it in the logarithm). May be given several times; goes before
    /// parameterSweep of the file
    #[arg(
        long = "param",
        value_name = "NAME=A,B,C|NAME=START:END:COUNT[:log]",
        value_parser = parameter
    )]
    parameters: Vec<SweepParameter>,
    /// How several parameters are combined: every combination, the nth values together, or draws [default: grid]
    #[arg(long, value_enum)]
    sweep_mode: Option<Mode>,
    /// Jobs of the array that run at one time [default: no limit]
    #[arg(long, value_name = "COUNT")]
    max_running: Option<u32>,
    /// Random mode: how many jobs
    #[arg(long, value_name = "COUNT")]
    samples: Option<u32>,
    /// Random mode: the same seed gives the same jobs [default: 0]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    // (Not doc comments: clap would print a line for each value.)
    // Every combination.
    Grid,
    // The nth values together.
    List,
    // Draws.
    Random,
}

impl Mode {
    fn to_proto(self) -> SweepMode {
        match self {
            Self::Grid => SweepMode::Grid,
            Self::List => SweepMode::List,
            Self::Random => SweepMode::Random,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Grid => "grid",
            Self::List => "list",
            Self::Random => "random",
        }
    }
}

/// Parses one `--param`.
fn parameter(text: &str) -> Result<SweepParameter, String> {
    let (name, values) = text.split_once('=').ok_or(FORM)?;
    if name.is_empty() || values.is_empty() {
        return Err(FORM.to_owned());
    }
    if let Some(range) = range(values)? {
        return Ok(SweepParameter {
            name: name.to_owned(),
            ..range
        });
    }
    Ok(SweepParameter {
        name: name.to_owned(),
        values: values.split(',').map(str::to_owned).collect(),
        ..SweepParameter::default()
    })
}

/// A range, if the text begins as one: two numbers with a colon between them, and no comma anywhere.
fn range(text: &str) -> Result<Option<SweepParameter>, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (Some(Ok(start)), Some(Ok(end))) = (
        parts.first().map(|part| part.parse::<f64>()),
        parts.get(1).map(|part| part.parse::<f64>()),
    ) else {
        return Ok(None);
    };
    if text.contains(',') {
        return Ok(None);
    }
    let (count, logarithmic) = match parts.get(2..) {
        None | Some([]) => (0, false),
        Some(["log"]) => (0, true),
        Some([count]) => (number(count)?, false),
        Some([count, "log"]) => (number(count)?, true),
        Some(_) => return Err(format!("{text} is no range; {FORM}")),
    };
    Ok(Some(SweepParameter {
        start: Some(start),
        end: Some(end),
        count,
        logarithmic,
        ..SweepParameter::default()
    }))
}

fn number(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("{text} is no number of values; {FORM}"))
}

impl SweepArgs {
    /// The sweep of the file with the flags in it; none when neither has one. Also says which fields of the sweep the flags
    /// have given, each with its flag.
    pub(super) fn over(
        &self,
        file: Option<&ParameterSweep>,
    ) -> Result<Option<(ParameterSweep, Given)>, Error> {
        let mut sweep = file.cloned().unwrap_or_default();
        let mut given = Vec::new();
        for parameter in &self.parameters {
            let present = sweep
                .parameters
                .iter()
                .position(|present| present.name == parameter.name);
            let index = match present {
                Some(index) => index,
                None => {
                    sweep.parameters.push(SweepParameter::default());
                    sweep.parameters.len() - 1
                }
            };
            if let Some(slot) = sweep.parameters.get_mut(index) {
                slot.clone_from(parameter);
            }
            given.push((
                format!("parameters[{index}]"),
                format!("--param {}", parameter.name),
            ));
        }
        if let Some(mode) = self.sweep_mode {
            sweep.set_mode(mode.to_proto());
            given.push(("mode".into(), format!("--sweep-mode {}", mode.word())));
        }
        let numbers = [
            (
                "maxRunningJobs",
                "--max-running",
                &mut sweep.max_running_jobs,
                self.max_running,
            ),
            ("samples", "--samples", &mut sweep.samples, self.samples),
        ];
        for (field, flag, slot, value) in numbers {
            if let Some(value) = value {
                *slot = value;
                given.push((field.to_owned(), format!("{flag} {value}")));
            }
        }
        if let Some(seed) = self.seed {
            sweep.seed = seed;
            given.push(("seed".into(), format!("--seed {seed}")));
        }
        if file.is_none() && self.parameters.is_empty() {
            return match given.first() {
                None => Ok(None),
                Some((_, flag)) => Err(Error::usage(format!(
                    "{flag} belongs to an array of jobs: pass --param NAME=A,B,C as well, or write parameterSweep in the \
                     job file"
                ))),
            };
        }
        if self.samples.is_some() && sweep.mode() == SweepMode::Unspecified {
            // Only draws are counted by samples.
            sweep.set_mode(SweepMode::Random);
        }
        Ok(Some((sweep, given)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_are_told_apart() {
        let list = parameter("MODEL=resnet,vgg").unwrap();
        assert_eq!(list.values, ["resnet", "vgg"]);
        assert_eq!(parameter("HOST=10.0.0.1:80").unwrap().values.len(), 1);
        assert_eq!(parameter("PAIR=1:2,3:4").unwrap().values, ["1:2", "3:4"]);
        let range = parameter("LR=0.001:0.1:3:log").unwrap();
        assert_eq!(
            (range.start, range.end, range.count, range.logarithmic),
            (Some(0.001), Some(0.1), 3, true)
        );
        let drawn = parameter("LR=1e-4:1e-1:log").unwrap();
        assert_eq!((drawn.count, drawn.logarithmic), (0, true));
        assert_eq!(parameter("N=1:4:4").unwrap().count, 4);
    }

    #[test]
    fn what_is_no_parameter_says_how_to_write_one() {
        for text in ["LR", "=1", "LR=", "LR=1:2:many", "LR=1:2:3:linear"] {
            let error = parameter(text).unwrap_err();
            assert!(error.contains("START:END"), "{text}: {error}");
        }
    }

    #[test]
    fn flags_go_before_the_file() {
        let file = ParameterSweep {
            parameters: vec![parameter("A=1,2").unwrap(), parameter("B=x").unwrap()],
            max_running_jobs: 9,
            ..ParameterSweep::default()
        };
        let args = SweepArgs {
            parameters: vec![parameter("B=y,z").unwrap(), parameter("C=1:2:2").unwrap()],
            max_running: Some(2),
            ..SweepArgs::default()
        };
        let (sweep, given) = args.over(Some(&file)).unwrap().unwrap();
        let names: Vec<&str> = sweep
            .parameters
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        assert_eq!(names, ["A", "B", "C"]);
        assert_eq!(sweep.parameters[1].values, ["y", "z"]);
        assert_eq!(sweep.max_running_jobs, 2);
        assert_eq!(given[0], ("parameters[1]".into(), "--param B".into()));
    }

    #[test]
    fn flags_of_an_array_want_a_parameter() {
        let args = SweepArgs {
            seed: Some(7),
            ..SweepArgs::default()
        };
        let error = args.over(None).unwrap_err();
        assert!(error.to_string().contains("--param"), "{error}");
        assert!(SweepArgs::default().over(None).unwrap().is_none());
    }
}
