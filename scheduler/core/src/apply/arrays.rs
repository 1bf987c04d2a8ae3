//! Arrays: one create that becomes many jobs, all or none.
//!
//! The log keeps the template and the sweep once; every member expands them in the same way. The UUIDs of the jobs
//! follow from that of the array. Nothing here may depend on anything but the state and the command.

use prost::Message;
use trainyard_proto::store::v1::CreateJobArray;
use trainyard_proto::v1::{CreateJobArrayResponse, Job, JobArrayMember, ParameterSweep};
use trainyard_shared::names::{ExperimentName, JobName};
use trainyard_shared::validate::FieldViolation;
use trainyard_shared::{sweep, validate};

use super::{Applied, Context, Prepared, incomplete, parse};
use crate::outcome::{Refusal, RefusalKind, Reply};
use crate::state::State;

/// Most bytes of all jobs of an array together: the state, its snapshots and one entry's work stay bounded.
const MAX_BYTES: usize = 32 << 20;
/// Most violations that are reported; the jobs of an array tend to share them.
const MAX_VIOLATIONS: usize = 20;

/// An array and its jobs, in order of index.
pub(super) struct NewArray {
    answer: CreateJobArrayResponse,
    jobs: Vec<Job>,
}

impl NewArray {
    /// The answer to the caller.
    pub(super) fn into_reply(self) -> Reply {
        Reply::JobArray(self.answer)
    }
}

impl State {
    /// The checking half of [`State::create_job_array`]; changes nothing.
    pub(super) fn prepare_job_array(
        &self,
        context: &Context,
        command: &CreateJobArray,
    ) -> Result<Prepared<NewArray>, Refusal> {
        let template = command.job.as_ref().ok_or_else(|| incomplete("job"))?;
        let swept = command.sweep.as_ref().ok_or_else(|| incomplete("sweep"))?;
        let parsed = parse::<JobName>(&template.name)?;
        let (experiment, id) = (parsed.experiment(), parsed.id().to_owned());
        let invalid = |violations| Refusal::invalid(&template.name, in_sweep(violations));
        let size = sweep::size(swept).map_err(invalid)?;
        if let Some(reply) = self.replay_array(&command.request_id, &experiment, &id, size) {
            return reply.map(|made| Prepared::Made(Box::new(made)));
        }
        self.parent_experiment(&experiment)?;
        self.admit_jobs(&template.name, u64::from(size))?;
        let jobs = self.members(context, template, swept, &experiment, &id)?;
        Ok(Prepared::New(Box::new(NewArray {
            answer: CreateJobArrayResponse {
                uid: template.uid.clone(),
                size,
                jobs: jobs.iter().map(|job| job.name.clone()).collect(),
            },
            jobs,
        })))
    }

    pub(super) fn create_job_array(
        &mut self,
        context: &mut Context,
        command: &CreateJobArray,
    ) -> Applied {
        let NewArray { answer, jobs } = match self.prepare_job_array(context, command)? {
            Prepared::Made(reply) => return Ok(*reply),
            Prepared::New(array) => *array,
        };
        let name = command.job.as_ref().map_or("", |job| job.name.as_str());
        self.requests
            .remember(&command.request_id, name, &answer.uid);
        for job in jobs {
            self.insert_job(context, job);
        }
        Ok(Reply::JobArray(answer))
    }

    /// All jobs of the array, checked one by one as single jobs are.
    fn members(
        &self,
        context: &Context,
        template: &Job,
        swept: &ParameterSweep,
        experiment: &ExperimentName,
        id: &str,
    ) -> Result<Vec<Job>, Refusal> {
        let invalid = |violations| Refusal::invalid(&template.name, violations);
        let rows = sweep::expand(swept).map_err(|wrong| invalid(in_sweep(wrong)))?;
        let size = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        let spec = template.spec.clone().unwrap_or_default();
        let mut jobs = Vec::with_capacity(rows.len());
        let mut bytes = 0;
        for (index, values) in (0..size).zip(&rows) {
            let name = member_name(experiment, id, index)?;
            let spec = sweep::apply(&spec, values).map_err(|wrong| invalid(vec![wrong]))?;
            let mut wrong = validate::job(&spec);
            if !wrong.is_empty() {
                wrong.truncate(MAX_VIOLATIONS);
                for violation in &mut wrong {
                    violation.message = format!("in job {name}: {}", violation.message);
                }
                return Err(invalid(wrong));
            }
            let job = Job {
                user: template.user.clone(),
                array: Some(JobArrayMember {
                    uid: template.uid.clone(),
                    index,
                    size,
                    max_running_jobs: swept.max_running_jobs,
                }),
                ..self.new_job(context, &name, member_uid(&template.uid, index), spec)?
            };
            bytes += job.encoded_len();
            if bytes > MAX_BYTES {
                return Err(Refusal::invalid_field(
                    &template.name,
                    "parameterSweep",
                    format!(
                        "the jobs of the array take more than {MAX_BYTES} bytes together; make fewer at a time, or \
                         smaller ones"
                    ),
                ));
            }
            jobs.push(job);
        }
        Ok(jobs)
    }

    /// The array that a repeated create made before, as long as one of its jobs is left.
    fn replay_array(
        &self,
        request_id: &str,
        experiment: &ExperimentName,
        id: &str,
        size: u32,
    ) -> Option<Applied> {
        let name = JobName::new(experiment, id).ok()?.to_string();
        let find = |s: &Self, _: &str| {
            let (_, uid) = s.requests.get(request_id)?;
            let left = (0..size).find_map(|index| {
                let job = s.jobs.get(&format!("{name}-{index}"))?;
                job.array.clone().filter(|member| member.uid == uid)
            })?;
            let answer = CreateJobArrayResponse {
                uid: left.uid.clone(),
                size: left.size,
                jobs: (0..left.size).map(|i| format!("{name}-{i}")).collect(),
            };
            Some((left.uid, Reply::JobArray(answer)))
        };
        self.replay(request_id, &name, find)
    }
}

fn member_name(experiment: &ExperimentName, id: &str, index: u32) -> Result<JobName, Refusal> {
    let id = format!("{id}-{index}");
    JobName::new(experiment, &id).map_err(|error| {
        Refusal::new(
            RefusalKind::InvalidArgument,
            &format!("{experiment}/jobs/{id}"),
            format!("the jobs of an array are called NAME-0, NAME-1, and so on, and {error}"),
        )
    })
}

fn in_sweep(mut violations: Vec<FieldViolation>) -> Vec<FieldViolation> {
    for violation in &mut violations {
        violation.field = format!("parameterSweep.{}", violation.field);
    }
    violations
}

/// UUID of a member (version 8): from the array's UUID by FNV-1a and one round of SplitMix64's mixer for each half.
/// Distinct for each index of an array; as unlikely as the array's own to meet another.
fn member_uid(array: &str, index: u32) -> String {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in array.bytes() {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    let (high, low) = halves(hash);
    let first = mix(high.wrapping_add(u64::from(index)));
    let second = mix(low ^ first);
    let uid = (u128::from(first) << 64) | u128::from(second);
    // Version and variant.
    let uid = (uid & !(0xf << 76) & !(0x3 << 62)) | (0x8 << 76) | (0x2 << 62);
    let text = format!("{uid:032x}");
    let part = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-{}-{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    )
}

fn halves(hash: u128) -> (u64, u64) {
    let low = u128::from(u64::MAX);
    (
        u64::try_from(hash >> 64).unwrap_or_default(),
        u64::try_from(hash & low).unwrap_or_default(),
    )
}

fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn members_have_uuids_of_their_own_that_never_change() {
        let array = "2c1f4f0e-5a43-4a35-9f3c-0f6f0a4f7a11";
        let uids: BTreeSet<String> = (0..10_000).map(|i| member_uid(array, i)).collect();
        assert_eq!(uids.len(), 10_000);
        for uid in &uids {
            assert_eq!((uid.len(), uid.as_bytes()[14]), (36, b'8'), "{uid}");
            assert!(
                matches!(uid.as_bytes()[19], b'8' | b'9' | b'a' | b'b'),
                "{uid}"
            );
        }
        assert_ne!(member_uid(array, 0), member_uid("another", 0));
        assert_eq!(member_uid(array, 0), member_uid(array, 0));
        assert_eq!(member_uid("a", 7), "c2395d43-29fc-829b-9a88-f861a0a5e85e");
    }
}
