//! What a plugin's process is given.

use std::collections::HashMap;

use toru_supervisor::ProcessSettings;

use crate::stage::{Stage, folder};

fn stage(body: &str, own: ProcessSettings) -> Stage {
    let (dir, mut settings) = folder(&[("p", body)]);
    settings.adjustable.process = HashMap::from([("p".to_owned(), own)]);
    Stage::start(dir, settings)
}

#[test]
fn a_plugin_gets_what_is_set_for_its_process() {
    let cwd = tempfile::tempdir().expect("temporary directory");
    let body = "echo said \"$1/$2/$LANG/$TORU_PLUGIN_ID/$(pwd -P)/$(nice)/$(ulimit -n)/$(ulimit -Hn)/$(ulimit -v)\"\n\
                trap 'exit 0' TERM\nsleep 1000 & wait";
    let own = ProcessSettings {
        env: vec![("LANG".into(), "x".into())],
        args: vec!["a b".into(), String::new()],
        cwd: Some(cwd.path().to_owned()),
        nice: Some(19),
        memory_bytes_max: Some(1 << 30),
        open_files_max: Some(32),
    };
    let stage = stage(body, own);
    let cwd = cwd.path().canonicalize().expect("it is there");
    assert_eq!(stage.line("p", "said"), format!("a b//x/p/{}/19/32/32/{}", cwd.display(), 1 << 20));
}

#[test]
fn settings_that_cannot_be_had_disable_the_plugin_with_the_reason() {
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let mut cases = vec![(
        ProcessSettings { cwd: Some("/no/such/folder".into()), ..ProcessSettings::default() },
        "/no/such/folder cannot be entered: No such file",
    )];
    // Root may do all of this.
    if !rustix::process::geteuid().is_root() {
        cases.push((ProcessSettings { nice: Some(-20), ..ProcessSettings::default() }, "`nice` -20"));
        if let Some(hard) = hard {
            let own = ProcessSettings { open_files_max: Some(hard + 1), ..ProcessSettings::default() };
            cases.push((own, "its limits"));
        }
    }
    for (own, expect) in cases {
        let stage = stage("exit 1", own);
        let details = stage.event("p", "disabled_after_crashes");
        assert!(details["reason"].as_str().expect("a reason").contains(expect), "{details}");
    }
}
