//! Runs one of the micro-benchmarks' cases so many times, for tools that count instructions: see `benches/counts.py`.
//!
//! | command | does |
//! | --- | --- |
//! | `bench-case` | lists the cases |
//! | `bench-case NAME COUNT` | runs one |

use std::process::ExitCode;

use toru_benches::cases;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => {
            for case in cases() {
                println!("{}", case.name);
            }
            ExitCode::SUCCESS
        }
        [name, count] => {
            let count = count.parse::<u32>();
            let (Some(mut case), Ok(count)) = (cases().into_iter().find(|case| case.name == *name), count)
            else {
                eprintln!("no such case, or no number: {name}, {count:?}", count = arguments[1]);
                return ExitCode::from(2);
            };
            for _ in 0..count {
                (case.run)();
            }
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: bench-case [NAME COUNT]");
            ExitCode::from(2)
        }
    }
}
