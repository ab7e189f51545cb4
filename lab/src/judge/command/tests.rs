use std::ops::ControlFlow;
use std::path::Path;
use std::{fs, panic};

use super::super::{Case, Judge, JudgeError, RoleCase};

/// Prints as many scores as there are lines, each the last digit of the question, after it has read all.
const READS_ALL: &str = r#"awk '{ match($0, /"question":"[0-9]/); s[NR] = substr($0, RSTART + 12, 1) } END { for (i = 1; i <= NR; i++) print s[i] }'"#;
/// The same, line by line, as objects.
const LINE_BY_LINE: &str = r#"while read -r line; do line=${line#*'"question":"'}; printf '{"why": "x", "score": %s}\n' "${line%%'"'*}"; done"#;

const QUESTIONS: [&str; 4] = ["0", "1", "2", "3"];

/// Makes cases whose question is their score.
fn with_cases<T>(count: usize, answer: &str, use_them: impl FnOnce(&[Case<'_>]) -> T) -> T {
    let case = |index: usize| {
        let (role, system) = ("pirate", "You are a\npirate.");
        Case::Role(RoleCase { role, system, question: QUESTIONS[index * 7 % 4], answer })
    };
    use_them(&(0..count).map(case).collect::<Vec<_>>())
}

/// Judges and returns the result with the scores.
fn judge(line: &str, count: usize, answer: &str) -> (Result<bool, JudgeError>, Vec<u8>) {
    with_cases(count, answer, |cases| {
        let mut scores = Vec::new();
        let result = Judge::Command(line.into()).judge(cases, |index, score| {
            assert_eq!(index, scores.len());
            scores.push(score);
            ControlFlow::Continue(())
        });
        (result, scores)
    })
}

fn error(line: &str, count: usize) -> JudgeError {
    judge(line, count, "Arr.").0.expect_err(line)
}

fn expected(count: usize) -> Vec<u8> {
    (0..count).map(|index| QUESTIONS[index * 7 % 4].as_bytes()[0] - b'0').collect()
}

/// Returns whether a process whose number a command wrote is still there, as a zombie perhaps.
fn is_alive(file: &Path) -> bool {
    let number = fs::read_to_string(file).unwrap().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(number).unwrap();
    rustix::process::test_kill_process(pid).is_ok()
}

#[test]
fn programs_that_read_all_first_and_those_that_answer_each_line_are_the_same() {
    for line in [READS_ALL, LINE_BY_LINE] {
        let (result, scores) = judge(line, 9, "He said: \"Arr\".\nAnd left. \u{2028}");
        assert!(result.unwrap(), "{line}");
        assert_eq!(scores, expected(9), "{line}");
    }
    assert!(Judge::Command("exit 3".into()).judge(&[], |_, _| ControlFlow::Continue(())).unwrap());
}

#[test]
fn many_long_answers_pass_through_pipes_of_any_size() {
    // 20 MB of input; the output fills a pipe too, before anything else is read.
    let talkative = r#"awk '{ printf "{\"score\":1,\"why\":\"%1000s\"}\n", "" ; printf "%1000s\n", "" > "/dev/stderr" }'"#;
    let answer = "A long \"answer\".\n".repeat(200);
    for line in [READS_ALL, talkative, "cat > /dev/null; yes 1 | head -n 5000"] {
        let (result, scores) = judge(line, 5000, &answer);
        assert!(result.unwrap(), "{line}");
        assert_eq!(scores.len(), 5000);
    }
}

#[test]
fn a_command_that_fails_is_quoted_with_its_status_and_stderr() {
    let failed = error("read -r line; echo 2; echo no model >&2; exit 3", 2);
    assert!(matches!(failed, JudgeError::Exit { found: 1, expected: 2, .. }), "{failed}");
    let text = failed.to_string();
    assert!(text.contains("exit status: 3") && text.contains("no model"), "{text}");
    let late = error("cat > /dev/null; echo 2; exit 3", 1);
    assert!(matches!(late, JudgeError::Exit { found: 1, .. }), "{late}");
    let missing = error("/no/such/judge --fast", 1).to_string();
    assert!(missing.contains("status: 127") && missing.contains("give the path"), "{missing}");
    let killed = error("kill -9 $$", 1).to_string();
    assert!(killed.contains("signal: 9"), "{killed}");
}

#[test]
fn the_end_of_stderr_is_quoted() {
    let lines = "i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1";
    let JudgeError::Exit { stderr, .. } = error(lines, 1) else { panic!() };
    assert_eq!(stderr, "line 2995\nline 2996\nline 2997\nline 2998\nline 2999");
}

#[test]
fn wrong_lines_are_named_by_number() {
    let failed = error("cat > /dev/null; echo 2; echo maybe 3; echo 1", 3);
    assert!(matches!(&failed, JudgeError::Line { line: 2, text } if text == "maybe 3"), "{failed}");
    let failed = error("cat > /dev/null; echo 4", 1);
    assert!(matches!(failed, JudgeError::Range { line: 1, .. }), "{failed}");
    let failed = error("cat > /dev/null; yes 22222222 | tr -d '\\n'", 1);
    assert!(matches!(failed, JudgeError::LongLine { line: 1, .. }), "{failed}");
    let failed = error(r"cat > /dev/null; printf '\377\n'", 1);
    assert!(matches!(failed, JudgeError::Line { line: 1, .. }), "{failed}");
}

#[test]
fn too_few_and_too_many_lines_are_errors() {
    let few = error("read -r line; echo 1; cat > /dev/null; echo sorry >&2", 3);
    assert!(matches!(few, JudgeError::FewLines { found: 1, expected: 3, .. }), "{few}");
    assert!(few.to_string().contains("sorry"), "{few}");
    let many = error("cat > /dev/null; echo 1; echo 2; yes 3", 2);
    assert!(matches!(&many, JudgeError::ManyLines { expected: 2, text } if text == "3"), "{many}");
}

#[test]
fn scores_of_answers_that_were_not_read_are_an_error() {
    // More than a pipe holds.
    let answer = "long ".repeat(100_000);
    let (result, _) = judge("echo 1; echo 2; echo 3", 3, &answer);
    assert!(matches!(result, Err(JudgeError::Unread { expected: 3, .. })), "{result:?}");
    let (result, _) = judge("echo 1", 3, &answer);
    assert!(matches!(result, Err(JudgeError::FewLines { found: 1, .. })), "{result:?}");
    let (result, scores) = judge("exec <&-; echo 1; echo gone >&2; exit 5", 3, &answer);
    assert!(matches!(result, Err(JudgeError::Exit { found: 1, .. })), "{result:?}");
    assert_eq!(scores, [1]);
}

#[test]
fn a_command_is_gone_after_a_stop_an_error_and_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    // The shell waits for programs that neither read nor end. If they outlived it, so would our threads,
    // because the programs hold the pipes open.
    let line = |output: &str| format!("echo $$ > '{}'; {output}; sleep 1000 | sleep 1000", pid.display());
    let answer = "long ".repeat(100_000);
    with_cases(3, &answer, |cases| {
        let judge = Judge::Command(line("echo 2"));
        let mut scores = Vec::new();
        let stopped = judge.judge(cases, |index, score| {
            scores.push((index, score));
            assert!(is_alive(&pid));
            ControlFlow::Break(())
        });
        assert!(!stopped.unwrap());
        assert_eq!(scores, [(0, 2)]);
        assert!(!is_alive(&pid));

        let failed = Judge::Command(line("echo x")).judge(cases, |_, _| ControlFlow::Continue(()));
        assert!(matches!(failed, Err(JudgeError::Line { line: 1, .. })), "{failed:?}");
        assert!(!is_alive(&pid));

        let caught = panic::catch_unwind(|| judge.judge(cases, |_, _| panic!("on purpose")));
        assert!(caught.is_err());
        assert!(!is_alive(&pid));
    });
}

#[test]
fn what_a_command_leaves_running_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    // A server in the background holds the pipes open.
    let line = format!("echo $$ > '{}'; sleep 1000 & cat > /dev/null; echo 1; echo 2", pid.display());
    let (result, scores) = judge(&line, 2, "Arr.");
    assert!(result.unwrap());
    assert_eq!(scores, [1, 2]);
    assert!(!is_alive(&pid));
}
