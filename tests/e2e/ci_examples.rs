//! The examples of docs/ci.md, run from the page itself. What belongs to a service (its checkout, its
//! cache) is done here as the service does it; every line of ours is executed as it stands there.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Deserialize;

use crate::support::container::{Container, with_programs};
use crate::support::shared::copy_program;
use crate::support::{Context, Outcome, as_root, shared};

const PAGE: &str = include_str!("../../docs/ci.md");

/// Tests that tell whether they run in a restored process.
const TESTS: &str = "import unittest\n\
    import numpy\n\
    class Numbers(unittest.TestCase):\n\
    \x20   def test_sum(self):\n\
    \x20       self.assertEqual(numpy.arange(10).sum(), 45)\n\
    \x20   def test_process(self):\n\
    \x20       try: from preloaded_criu import is_restored\n\
    \x20       except ImportError: is_restored = bool\n\
    \x20       print('restored' if is_restored() else 'fresh')\n";

// What an example holds besides what is known here would not be run, and is refused.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GitHub {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "on")]
    _on: Vec<String>,
    jobs: GitHubJobs,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GitHubJobs {
    tests: GitHubJob,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GitHubJob {
    #[serde(rename = "runs-on")]
    _runs_on: String,
    container: GitHubContainer,
    steps: Vec<GitHubStep>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GitHubContainer {
    image: String,
    options: String,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum GitHubStep {
    /// The service's own.
    Service { uses: String, with: Option<BTreeMap<String, String>> },
    Ours {
        #[serde(rename = "name")]
        _name: String,
        #[serde(rename = "id")]
        _id: Option<String>,
        run: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GitLab {
    tests: GitLabJob,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GitLabJob {
    image: String,
    cache: GitLabCache,
    before_script: Vec<String>,
    script: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GitLabCache {
    #[serde(rename = "key")]
    _key: String,
    paths: [String; 1],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GitLabRunner {
    runners: GitLabExecutor,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GitLabExecutor {
    docker: GitLabDocker,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GitLabDocker {
    cap_add: Vec<String>,
    security_opt: Vec<String>,
}

/// The code blocks of the page, each with its language.
fn blocks() -> Vec<(&'static str, &'static str)> {
    let inside = PAGE.split("```").skip(1).step_by(2);
    inside.map(|block| block.split_once('\n').unwrap()).collect()
}

/// The block that begins so.
fn block(language: &str, start: &str) -> &'static str {
    let wanted = |block: &(&str, &str)| block.0 == language && block.1.starts_with(start);
    blocks().into_iter().find(wanted).unwrap_or_else(|| panic!("there is no {start:?}")).1
}

/// The repository that is tested, as it is checked out.
fn check_out(it: &Context) {
    it.file("tests/test_numbers.py", TESTS);
    fs::create_dir(it.work().join("tools")).unwrap();
    copy_program(shared().binary(), &it.work().join("tools/preloaded-criu"));
}

/// Runs the steps of a job, each a shell's own, in a container as the service starts it.
fn job(it: &Context, image: &str, options: &[String], steps: &[String]) -> Outcome {
    let folder = it.home().join("steps");
    fs::create_dir_all(&folder).unwrap();
    let mut all = String::from("set -e\n");
    for (number, step) in steps.iter().enumerate() {
        fs::write(folder.join(format!("{number}.sh")), step).unwrap();
        writeln!(all, "sh -e /steps/{number}.sh").unwrap();
    }
    Container::of_image(it, image)
        .options(options)
        .options(["--network=host", "--env=GITHUB_OUTPUT=/work/output"])
        .share(&folder, "/steps:ro")
        .run(["sh", "-c", &all])
}

#[track_caller]
fn passes(outcome: Outcome, restored: bool) {
    let outcome = outcome.succeeds();
    let (text, errors) = (outcome.text(), outcome.errors());
    assert!(text.ends_with(if restored { "restored\n" } else { "fresh\n" }), "{outcome:?}");
    assert!(errors.contains("\nRan 2 tests in ") && errors.ends_with("\nOK\n"), "{outcome:?}");
    assert_eq!(errors.contains("python starts without its image"), !restored, "{outcome:?}");
}

fn identity(path: &Path) -> (u64, i64) {
    let found = fs::metadata(path).unwrap();
    (found.ino(), found.mtime_nsec())
}

#[test]
fn all_examples_are_known_here() {
    let languages: Vec<&str> = blocks().iter().map(|block| block.0).collect();
    assert_eq!(languages, ["yaml", "yaml", "toml", "Dockerfile", "sh", "sh"]);
}

#[test]
fn the_example_for_github_runs_and_keeps_its_snapshot() {
    as_root(|it| {
        let example = block("yaml", "# .github/workflows/tests.yml");
        let GitHubJob { container, steps, .. } =
            serde_yaml_ng::from_str::<GitHub>(example).unwrap().jobs.tests;
        let mut services = Vec::new();
        let mut cached = None;
        let mut ours = Vec::new();
        for step in steps {
            match step {
                GitHubStep::Service { uses, with } => {
                    cached = cached.or(with.and_then(|with| with.get("path").cloned()));
                    services.push(uses);
                }
                GitHubStep::Ours { run, .. } => ours.push(run),
            }
        }
        assert_eq!(services, ["actions/checkout@v4", "actions/cache@v4"]);
        let cached = it.work().join(cached.unwrap());
        let options: Vec<String> =
            container.options.split_whitespace().map(str::to_owned).collect();

        check_out(it);
        passes(job(it, &container.image, &options, &ours), true);
        let output = fs::read_to_string(it.work().join("output")).unwrap();
        let key = output.strip_prefix("key=").unwrap().trim_end();
        assert!(key.len() == 16 && key.bytes().all(|byte| byte.is_ascii_hexdigit()), "{output}");
        // The next job on this machine.
        let made = identity(&cached);
        passes(job(it, &container.image, &options, &ours), true);
        assert_eq!(identity(&cached), made);
        let outputs = fs::read_to_string(it.work().join("output")).unwrap();
        assert_eq!(outputs, output.repeat(2), "two jobs on one machine have one key");
    });
}

#[test]
fn the_example_for_gitlab_runs_on_every_runner() {
    as_root(|it| {
        let example = block("yaml", "# .gitlab-ci.yml");
        let GitLabJob { image, cache, before_script, script } =
            serde_yaml_ng::from_str::<GitLab>(example).unwrap().tests;
        // The service makes one script of both.
        let script = [[before_script, script].concat().join("\n")];
        let runner: GitLabRunner = toml::from_str(block("toml", "# config.toml")).unwrap();
        let GitLabDocker { cap_add, security_opt } = runner.runners.docker;
        let options: Vec<String> = cap_add
            .iter()
            .map(|value| format!("--cap-add={value}"))
            .chain(security_opt.iter().map(|value| format!("--security-opt={value}")))
            .collect();
        let cached = it.work().join(&cache.paths[0]);

        check_out(it);
        // A runner that nobody has set up for it.
        passes(job(it, &image, &[], &script), false);
        assert!(!cached.exists());
        // The next job is checked out anew.
        for entry in fs::read_dir(it.work()).unwrap().flatten() {
            if entry.path().is_file() {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        passes(job(it, &image, &options, &script), true);
        assert!(cached.exists());
    });
}

#[test]
fn the_containerfile_is_built_and_run_by_both_programs() {
    as_root(|it| {
        check_out(it);
        it.file("Containerfile", block("Dockerfile", "# Containerfile\n"));
        for start in ["podman build", "docker build"] {
            let script = block("sh", start);
            let outcome = with_programs(it.command("/bin/bash").args(["-ec", script]), it).run();
            let outcome = outcome.succeeds();
            let text = outcome.text();
            assert!(!text.contains("fresh"), "{outcome:?}");
            let runs = script.matches(" run --rm ").count();
            assert_eq!(text.matches("restored\n").count(), runs, "{outcome:?}");
            assert_eq!(outcome.errors().matches("\nRan 2 tests in ").count(), runs, "{outcome:?}");
            assert!(!outcome.errors().contains("without its image"), "{outcome:?}");
        }
    });
}
