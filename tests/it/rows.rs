//! What may go wrong, and the tests that show what comes of it: look here for the test of a fault.
//!
//! Each test injects its fault into the real binary, but for those of a clock that is an argument.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use toru_tests::repository;

/// What goes wrong, and what must come of it: each clause with the tests that show it.
type Row = (&'static str, &'static [(&'static str, &'static [&'static str])]);

const ROWS: &[Row] = &[
    // Plugins.
    (
        "any fault of a plugin",
        &[
            (
                "other plugins are served, one event says what happened, no descriptor is left",
                &["each_fault_is_told_once_and_leaves_neighbour_and_core_as_they_were"],
            ),
            ("others' p99 stays within twice", &["faults_that_only_wait_leave_the_others_as_quick"]),
            ("nothing is left of many", &["nothing_leaks_over_many_faults"]),
        ],
    ),
    (
        "dies in the middle of a response",
        &[
            ("502 within 50 ms", &["a_death_is_502_within_50_ms"]),
            ("to each request in flight", &["a_crash_fails_every_request_in_flight_and_no_other_plugin"]),
            (
                "back-off, then restart",
                &[
                    "death_in_the_middle_of_an_answer_is_502_at_once",
                    "a_plugin_in_back_off_is_503_until_it_is_back",
                    "crashes_are_restarted_with_a_growing_pause",
                ],
            ),
            ("the event has all that is known", &["a_crash_event_has_all_that_is_known"]),
        ],
    ),
    (
        "hangs on one request",
        &[
            (
                "504 at the timeout, cancel sent, late answer dropped and counted",
                &[
                    "no_answer_in_time_is_504_with_a_cancel_and_the_late_answer_goes_nowhere",
                    "a_plugin_that_works_longer_than_a_request_may_take_and_reads_is_not_taken_for_deaf",
                ],
            ),
            (
                "the timeout is the plugin's own",
                &[
                    "the_timeout_of_the_metadata_wins",
                    "a_request_behind_long_work_has_the_time_that_the_plugin_asks_for",
                ],
            ),
        ],
    ),
    (
        "SIGSTOP",
        &[
            (
                "504s; after the unanswered pings SIGKILL and restart",
                &["a_stopped_process_times_out_and_is_restarted", "a_stopped_plugin_of_1_0_is_restarted"],
            ),
            ("pings alone tell it, too", &["pings_that_nobody_answers_end_in_a_restart"]),
        ],
    ),
    (
        "floods with unknown request ids",
        &[(
            "dropped, counted, others are served; closed past a rate",
            &["a_flood_of_answers_for_nobody_leaves_the_core_alive"],
        )],
    ),
    (
        "oversized, zero-length, garbage, bad UTF-8, deeply nested JSON",
        &[
            (
                "502s, closed, `protocol_error`",
                &[
                    "a_broken_frame_is_502_at_once_and_closes_that_connection",
                    "a_broken_frame_fails_what_is_in_flight_beside_it",
                    "an_answer_that_is_torn_breaks_the_protocol_unless_the_plugin_died_of_it",
                ],
            ),
            ("three in a minute count as a crash", &["three_broken_frames_in_a_minute_count_as_a_crash"]),
            ("nothing is allocated from a length", &["nothing_is_allocated_from_an_announced_length"]),
        ],
    ),
    (
        "part of a frame, then silence",
        &[(
            "a deadline on the frame, then as a broken frame",
            &["half_a_frame_and_then_silence_has_a_deadline", "the_time_for_a_frame_begins_with_each_frame"],
        )],
    ),
    (
        "never reads, or a byte a second",
        &[(
            "bounded queue, then 503 with `Retry-After`; write deadline closes; memory flat",
            &[
                "a_plugin_that_never_reads_fills_no_memory",
                "a_plugin_that_reads_a_byte_a_second_is_cut_off_and_fills_no_memory",
                "a_connection_that_is_not_read_is_given_up_though_the_kernel_takes_it_all",
                "a_connection_that_is_not_read_is_given_up_also_where_no_client_waits_for_the_timeout",
            ],
        )],
    ),
    (
        "closes its socket but lives",
        &[
            ("502s, reconnect", &["a_closed_connection_is_502_and_then_opened_again"]),
            (
                "a crash if it goes on",
                &[
                    "a_socket_that_closes_under_a_living_plugin",
                    "a_plugin_of_1_0_that_keeps_a_ping_and_listens_no_more_is_restarted",
                ],
            ),
        ],
    ),
    (
        "forks children that outlive it",
        &[
            (
                "none left after stop",
                &["children_of_a_plugin_do_not_outlive_it", "a_stop_ends_what_keeps_forking"],
            ),
            (
                "nor after a crash",
                &[
                    "children_of_a_plugin_that_crashes_go_while_an_older_one_runs",
                    "a_child_that_drops_everything_goes_with_a_plugin_that_dies",
                ],
            ),
        ],
    ),
    (
        "ignores SIGTERM",
        &[(
            "dead within grace, term grace and 200 ms",
            &[
                "who_ignores_sigterm_is_dead_within_both_graces_and_200_ms",
                "who_ignores_sigterm_is_killed_in_time",
            ],
        )],
    ),
    (
        "exits at once, code 0",
        &[("back-off; disabled past the limit", &["exit_code_0_in_a_loop_is_a_crash_loop_too"])],
    ),
    (
        "cannot run at all: 126, 127, wrong architecture, no run bit",
        &[
            ("one clear error with the reason", &["what_cannot_run_is_one_clear_error_and_no_loop"]),
            (
                "disabled at once, no restart loop",
                &["a_plugin_that_can_be_described_and_not_run_is_disabled_at_once"],
            ),
        ],
    ),
    (
        "metadata that hangs, is huge, is invalid, repeats an id or route",
        &[
            (
                "bounded; skipped with file and reason; the others load",
                &["a_plugin_that_cannot_be_described_is_skipped_with_file_and_reason"],
            ),
            (
                "of duplicates the first in name order wins",
                &[
                    "of_duplicates_the_first_in_name_order_wins",
                    "who_is_there_does_not_depend_on_who_described_itself_first",
                ],
            ),
        ],
    ),
    (
        "its socket path is a symbolic link or another user's",
        &[(
            "refused, event, the target untouched",
            &[
                "a_socket_path_that_is_a_link_is_refused_and_its_target_untouched",
                "a_socket_of_another_user_is_refused",
            ],
        )],
    ),
    (
        "stderr without end",
        &[(
            "drained, limited, drops counted and logged, files capped; no write blocks",
            &["stderr_without_end_never_blocks_the_plugin_and_never_fills_the_disk"],
        )],
    ),
    (
        "header with CR, LF or NUL; status 99, 150, 999",
        &[(
            "502 and an event; nothing of it reaches the client",
            &[
                "an_answer_that_is_no_http_is_502_and_nothing_of_it_reaches_the_client",
                "controls_in_an_answer_are_502",
            ],
        )],
    ),
    (
        "sends content-length, transfer-encoding, connection and other hop-by-hop fields",
        &[
            (
                "dropped",
                &[
                    "hop_by_hop_fields_stop_at_the_core",
                    "what_an_answer_says_about_its_connection_stops_here",
                ],
            ),
            ("the core frames the response", &["a_length_that_the_plugin_claims_means_nothing"]),
        ],
    ),
    ("answers twice", &[("the second dropped and counted", &["answers_for_nobody_are_dropped"])]),
    (
        "crashes once a month",
        &[(
            "always the first step: the count resets after a stable minute",
            &[
                "a_monthly_crash_always_waits_the_first_step",
                "the_count_of_crashes_resets_after_a_stable_time",
            ],
        )],
    ),
    (
        "another binary in its place",
        &[("restarted, if its content changed", &["a_changed_binary_is_restarted_and_a_touched_one_is_not"])],
    ),
    // Clients.
    (
        "slow head, slow body",
        &[(
            "cut by a deadline and a least rate, not by a timer for each read",
            &[
                "a_head_that_drips_is_cut_at_its_deadline",
                "a_body_that_drips_is_cut_by_its_rate_and_not_by_a_timer_for_each_read",
            ],
        )],
    ),
    (
        "slow reader",
        &[(
            "write deadline; at most one buffered response; who reads is served",
            &[
                "a_slow_reader_is_dropped",
                "a_client_that_does_not_read_has_its_next_request_wait_for_it",
                "a_reader_that_is_slow_but_reads_is_served",
                "a_reader_of_a_few_bytes_a_second_is_reset",
                "a_reader_that_is_fast_enough_gets_all_of_what_the_kernel_has_for_it",
            ],
        )],
    ),
    (
        "goes away in mid request",
        &[(
            "`cancel` to the plugin, slot free at once",
            &[
                "a_client_that_goes_away_cancels_its_request",
                "a_client_that_resets_frees_its_place_at_once_even_behind_a_flood_of_requests",
                "the_place_of_a_client_that_resets_goes_to_the_next_who_waits",
                "a_client_that_closes_its_side_and_then_resets_frees_its_place_at_once",
                "a_client_whose_machine_is_gone_is_noticed_by_the_kernel",
            ],
        )],
    ),
    (
        "10 000 connections",
        &[(
            "served or refused with 503; memory bounded",
            &[
                "ten_thousand_connections_are_served_or_told_at_once_that_there_is_no_room",
                "a_crowd_beyond_the_descriptors_is_told_and_holds_up_nobody",
            ],
        )],
    ),
    ("pipelined flood", &[("answered in order, bounded queue", &["a_pipelined_flood_is_answered_in_order"])]),
    (
        "malformed or ambiguous framing",
        &[(
            "400 and close, nothing forwarded",
            &[
                "what_is_malformed_is_refused_and_nothing_behind_it_is_taken",
                "malformed_requests_are_400_closed_and_never_forwarded",
            ],
        )],
    ),
    // The system.
    (
        "disk full",
        &[(
            "507, what was acknowledged is kept, recovers without restart",
            &[
                "a_full_disk_refuses_values_keeps_the_old_and_recovers",
                "a_disk_that_fills_under_load_loses_nothing_acknowledged",
            ],
        )],
    ),
    (
        "fsync fails",
        &[(
            "not acknowledged; degraded until the database reopens",
            &[
                "a_write_that_cannot_be_synced_is_not_acknowledged",
                "a_value_refused_by_a_failing_sync_never_comes_back",
            ],
        )],
    ),
    (
        "database locked",
        &[("waits, then 503; workers never block", &["a_locked_database_delays_values_and_no_request"])],
    ),
    (
        "database corrupt",
        &[(
            "refused at start by name, never made anew",
            &["a_corrupt_database_is_refused_at_start_and_left_as_it_is"],
        )],
    ),
    (
        "no descriptors left",
        &[(
            "no spinning; health checks and SQLite keep theirs",
            &[
                "no_descriptors_left_does_not_end_or_spin_the_core",
                "want_of_descriptors_is_the_cores_trouble_and_no_crash",
                "without_descriptors_for_more_clients_each_is_told_at_once",
                "clients_take_no_descriptors_of_many_plugins",
                "files_that_are_sent_slowly_leave_plugins_and_operators_their_descriptors",
            ],
        )],
    ),
    (
        "log directory missing, read-only, full",
        &[(
            "serves on; one line to stderr; lost lines counted",
            &[
                "logs_that_cannot_be_written_stop_nothing",
                "a_full_disk_under_the_logs_stops_nothing",
                "a_disk_that_was_full_leaves_no_half_line_in_a_log",
                "a_disk_that_hangs_under_the_logs_stops_nothing",
                "a_standard_error_that_nobody_reads_holds_up_no_log",
            ],
        )],
    ),
    (
        "io_uring refused",
        &[("epoll, one warning, everything works", &["epoll_with_one_warning_where_io_uring_is_refused"])],
    ),
    (
        "low locked-memory limit",
        &[("epoll, or a clear error at start", &["a_low_limit_on_locked_memory_is_no_obstacle"])],
    ),
    (
        "core SIGKILLed",
        &[
            ("plugins and their children gone within 2 s", &["a_killed_core_takes_its_plugins_with_it"]),
            (
                "or swept at the next start, and no stranger with them",
                &[
                    "what_a_killed_core_left_behind_is_swept_at_the_next_start",
                    "a_killed_core_leaves_nobody_however_often",
                    "the_next_start_ends_what_a_killed_daemon_left",
                    "the_next_start_ends_what_keeps_forking",
                ],
            ),
        ],
    ),
    (
        "core SIGKILLed while values are acknowledged",
        &[(
            "every acknowledged value is there",
            &[
                "every_acknowledged_value_is_there_after_a_sigkill",
                "nothing_acknowledged_is_lost_to_a_kill_at_each_of_the_first_writes",
            ],
        )],
    ),
    (
        "SIGHUP under load, and a bad file",
        &[(
            "no request dropped; the old configuration is kept",
            &["under_load_no_request_is_dropped", "a_bad_file_keeps_the_old_configuration_and_says_why"],
        )],
    ),
    (
        "wall clock jumps",
        &[(
            "no false timeout or restart",
            &["a_wall_clock_that_jumps_times_nothing_out_and_restarts_nothing"],
        )],
    ),
    // Figures.
    (
        "1 000 start, stop and kill cycles",
        &[("nothing is left", &["a_thousand_starts_stops_and_kills_leave_nothing"])],
    ),
    (
        "answers mixed up",
        &[("none", &["a_hundred_thousand_nonces_with_cancels_timeouts_and_crashes_going_on"])],
    ),
];

/// Names of the test functions in the sources below `folder`, each with the rows that stand beside it: `// Row: …`, right
/// above `#[test]`.
fn tests_in(folder: &Path, found: &mut BTreeMap<String, BTreeSet<String>>) {
    for entry in
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())).flatten()
    {
        let path = entry.path();
        if path.is_dir() {
            tests_in(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source is text");
            let parts: Vec<&str> = text.split("#[test]").collect();
            for pair in parts.windows(2) {
                // The first function that follows the attribute, and the lines that end before it.
                let Some((_, rest)) = pair[1].split_once("fn ") else { continue };
                let name = rest.split(['(', '<']).next().unwrap_or_default();
                let lines = pair[0].trim_end().lines().rev();
                let rows = lines.map_while(|line| line.trim().strip_prefix("// Row: ")).map(str::to_owned);
                found.entry(name.to_owned()).or_default().extend(rows);
            }
        }
    }
}

#[test]
fn every_fault_has_its_tests() {
    let mut found = BTreeMap::new();
    for folder in ["tests/it", "supervisor/src", "supervisor/tests"] {
        tests_in(&repository().join(folder), &mut found);
    }
    for (fault, clauses) in ROWS {
        assert!(!clauses.is_empty(), "{fault}");
        for (clause, tests) in *clauses {
            assert!(!tests.is_empty(), "{fault}: {clause}");
            for test in *tests {
                let rows = found.get(*test).unwrap_or_else(|| panic!("{fault}: there is no test {test}"));
                assert!(rows.contains(*fault), "beside {test} should stand: // Row: {fault}");
            }
        }
    }
    // And nothing beside a test that is not so here.
    for (test, rows) in &found {
        for row in rows {
            let shows = |(fault, clauses): &Row| {
                fault == row && clauses.iter().any(|(_, tests)| tests.contains(&test.as_str()))
            };
            assert!(ROWS.iter().any(shows), "{test} does not show {row:?} here");
        }
    }
}
