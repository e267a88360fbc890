//! `doctor`: what the machine allows, in words or as JSON.

use serde_json::{Value, json};

use crate::doctor::{Finding, Report, Status, Subject, examine};

use super::report::Failure;
use super::{answer, args};

/// The exit status when something is missing.
const MISSING: i32 = 1;

/// Examines the machine and prints what was found.
pub(super) fn doctor(arguments: &args::Doctor) -> Result<i32, Failure> {
    let subjects = match arguments.subject {
        Some(args::Subject::Run) => vec![Subject::Run],
        Some(args::Subject::Snapshot) => vec![Subject::Snapshot],
        None => vec![Subject::Run, Subject::Snapshot],
    };
    let examined = subjects.into_iter().map(|subject| examine(subject, arguments.criu.as_deref()));
    let reports: Vec<Report> = examined.collect();
    let text = if arguments.json {
        format!("{:#}\n", as_json(&reports))
    } else {
        reports.iter().map(in_words).collect::<Vec<_>>().join("\n")
    };
    answer(&text)?;
    Ok(if reports.iter().all(Report::is_good) { 0 } else { MISSING })
}

fn in_words(report: &Report) -> String {
    let verdict = if report.is_good() { "will work" } else { "will not work" };
    let findings = report.findings.iter().map(finding_in_words);
    format!("{} {verdict}\n{}", report.subject.name(), findings.collect::<String>())
}

fn finding_in_words(finding: &Finding) -> String {
    let mark = match finding.status {
        Status::Good => "ok",
        Status::Doubtful => "warn",
        Status::Missing => "FAIL",
    };
    let fix = finding.fix.iter().map(|fix| format!("        {fix}\n"));
    format!("  {mark:<5} {}\n{}", finding.text, fix.collect::<String>())
}

fn as_json(reports: &[Report]) -> Value {
    let told = reports.iter().map(|report| {
        let findings = report.findings.iter().map(|finding| {
            json!({
                "name": finding.name,
                "status": match finding.status {
                    Status::Good => "ok",
                    Status::Doubtful => "warn",
                    Status::Missing => "fail",
                },
                "text": finding.text,
                "fix": finding.fix,
            })
        });
        let findings = findings.collect::<Vec<_>>();
        (report.subject.name().to_owned(), json!({"ok": report.is_good(), "findings": findings}))
    });
    Value::Object(told.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(status: Status) -> Report {
        let fix = (status != Status::Good).then(|| "do this".to_owned());
        let finding = Finding { name: "thing", status, text: "it is so".into(), fix };
        Report { subject: Subject::Run, findings: vec![finding] }
    }

    #[test]
    fn words_have_the_verdict_first_and_each_fix_below_its_finding() {
        assert_eq!(in_words(&report(Status::Good)), "run will work\n  ok    it is so\n");
        assert_eq!(
            in_words(&report(Status::Doubtful)),
            "run will work\n  warn  it is so\n        do this\n"
        );
        assert_eq!(
            in_words(&report(Status::Missing)),
            "run will not work\n  FAIL  it is so\n        do this\n"
        );
    }

    #[test]
    fn machines_are_told_the_same() {
        let value = as_json(&[report(Status::Missing)]);
        assert_eq!(value["run"]["ok"], false);
        assert_eq!(value["run"]["findings"][0]["status"], "fail");
        assert_eq!(value["run"]["findings"][0]["fix"], "do this");
    }
}
