//! `refuse NUMBER,… COMMAND ARGUMENT…`: runs a command to which the kernel refuses the system calls of these numbers, as
//! containers and hardened kernels do.

#![forbid(unsafe_code)]

use std::{os::unix::process::CommandExt, process::Command};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

const USAGE: &str = "usage: refuse NUMBER,… COMMAND ARGUMENT…";
const EPERM: u32 = 1;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let numbers = arguments.next().and_then(|numbers| numbers.into_string().ok()).expect(USAGE);
    let command = arguments.next().expect(USAGE);
    let filter = SeccompFilter::new(
        numbers.split(',').map(|number| (number.parse().expect(USAGE), vec![])).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(EPERM),
        std::env::consts::ARCH.try_into().expect("seccompiler knows this architecture"),
    )
    .expect("the filter has no conditions that could contradict");
    let program: BpfProgram = filter.try_into().expect("a few syscalls fit a filter");
    seccompiler::apply_filter(&program).expect("the kernel takes seccomp filters");
    let error = Command::new(&command).args(arguments).exec();
    panic!("{}: {error}", command.display());
}
