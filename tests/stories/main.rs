//! The stories of a bad night, each against a simulated herd: what an operator may rely on at three in the morning.
//!
//! Every story has a test; those that another suite tells already are not told again here. The table is read by
//! [`every_story_names_a_test_that_exists`].
//!
//! | story | file | test |
//! |---|---|---|
//! | cold stampede: 30 clients, one unloaded model, one load | tests/proxy/waiting.rs | thirty_clients_on_an_unloaded_model_cause_one_load |
//! | impatient clients, a long load: the model comes up | tests/stories/loads.rs | impatient_clients_and_a_long_load_bring_the_model_up |
//! | half the fleet dead, refusing | tests/stories/nodes.rs | half_the_fleet_dead_costs_no_request |
//! | half the fleet dead, in the middle of work | tests/stories/nodes.rs | nodes_that_die_under_load_end_only_what_streams_on_them |
//! | more than half silent at once: it is us | src/fleet/facts/tests/pace.rs | when_most_nodes_fall_silent_at_once_routing_keeps_to_them |
//! | a node mute at /api/ps still streams | tests/stories/nodes.rs | a_node_mute_at_ps_serves_and_streams |
//! | a node that refuses and lets its streams end: down once, until it takes connections | tests/stories/nodes.rs | a_node_that_only_finishes_its_streams_stays_down_until_it_takes_connections |
//! | a node that hangs, dies or is mute harms nobody else | tests/proxy/isolation.rs | i9_a_node_that_hangs_or_dies_or_is_mute_harms_nobody_else |
//! | a node back with empty tags: 503, never 404 | tests/stories/nodes.rs | a_node_back_with_empty_tags_is_503_and_named |
//! | our own restart while the only node with a model is down: 503 | tests/stories/nodes.rs | our_own_restart_while_the_only_node_is_down_is_503 |
//! | a node far slower than the fleet is named, and avoided where so configured | tests/stories/sick.rs | a_slow_node_is_named_and_where_so_configured_the_last_choice |
//! | a demoted node serves when the others are full | tests/stories/sick.rs | a_demoted_node_serves_when_the_others_are_full |
//! | a copy that spills out of its GPU's memory is named | tests/stories/sick.rs | a_spilled_copy_is_named |
//! | a node that is suspect by silence is named | tests/stories/sick.rs | a_silent_node_is_named |
//! | a prompt that kills runners: two nodes at most | tests/stories/loads.rs | a_prompt_that_kills_runners_kills_two_at_most |
//! | a slow reader: memory bounded | tests/proxy/bounds.rs | i8_a_client_that_does_not_read_holds_the_node_back |
//! | 10,000 unknown model names: nothing grows | tests/stories/names.rs | ten_thousand_unknown_names_grow_nothing |
//! | disk full: served from memory, exact after healing | tests/stories/disk.rs | a_full_disk_is_served_through_and_exact_after_healing |
//! | disk full from here on: every file too large | tests/process/life.rs | a_disk_that_is_full_from_here_on_is_served_through_and_exact_after_healing |
//! | disk full from the start: a file system without a byte left | tests/process/life.rs | a_file_system_without_a_byte_left_is_served_through_and_the_store_is_taken_when_there_is_room |
//! | disk full, at the ledger | tests/ledger.rs | a_failing_disk_keeps_rows_in_memory_and_says_so |
//! | disk stalled: exact after healing | tests/ledger.rs | a_stalled_disk_delays_answers_but_not_the_fold |
//! | clock back two minutes and forward a day | tests/stories/clock.rs | the_clock_back_two_minutes_and_forward_a_day_loses_nothing |
//! | a step of the clock is seen within a second | tests/stories/clock.rs | the_wall_clock_is_read_anew_each_second |
//! | clock steps, row by row | tests/ledger.rs | a_clock_step_overwrites_nothing |
//! | events beyond the ring go to the key _lost | tests/ledger/lost.rs | what_a_full_ring_drops_is_in_the_ledger_under_lost |
//! | second process on the same data | tests/process/commands.rs | a_held_store_exits_75_and_a_shared_port_69 |
//! | SIGTERM loses nothing | tests/process.rs | i11_sigterm_in_mid_load_loses_nothing |
//! | SIGTERM, streams to the drain deadline | tests/process.rs | i11_streams_run_to_the_drain_deadline_and_then_end_in_words |
//! | SIGTERM during a start that hangs | tests/process/life.rs | sigterm_during_a_start_that_hangs_ends_it_cleanly_at_once |
//! | a thread of ours that hangs is named, and the liveness probe fails | tests/operate/stuck.rs | a_stuck_control_thread_is_told_and_streams_go_on |
//! | a log that nobody reads | tests/process/life.rs | a_log_pipe_that_nobody_reads_stops_nothing_and_lines_are_dropped_and_counted |
//! | a log whose reader is gone | tests/process/life.rs | a_log_pipe_whose_reader_is_gone_stops_nothing_and_lines_are_dropped_and_counted |
//! | second SIGTERM | tests/process.rs | i11_a_second_sigterm_ends_at_once_in_words |
//! | SIGKILL loses at most a tick | tests/process.rs | i11_sigkill_in_mid_load_loses_at_most_what_was_not_written_and_the_store_opens |
//! | reload with a typo | tests/operate/reload.rs | a_reload_with_a_typo_keeps_the_old_configuration_and_tells_every_mistake |
//! | a storm of SIGHUPs | tests/process/life.rs | a_storm_of_sighups_leaves_room_for_orders_and_its_last_one_is_obeyed |
//! | half a request at the drain deadline, idle clients | tests/process/life.rs | i11_half_a_request_at_the_drain_deadline_is_told_so_and_an_idle_client_holds_up_nothing |
//! | a restart behind systemd's socket | tests/process/life.rs | a_restart_on_a_handed_over_socket_refuses_nobody |
//! | SIGHUP | tests/process.rs | sighup_reloads_and_a_typo_changes_nothing_but_the_log |
//! | key rotation | tests/operate/reload.rs | router_keys_rotate_under_load_without_a_dropped_request |
//! | a node's key rotates | tests/operate/nodes.rs | an_api_key_of_a_node_rotates_with_the_next_request |
//! | DNS name that changes, resolver that fails | tests/operate/nodes.rs | a_dns_name_that_changes_is_followed_and_a_resolver_that_fails_changes_nothing |
//! | a DNS name that is many nodes | tests/operate/nodes.rs | nodes_behind_an_expanded_name_come_and_go_without_a_reload |
//! | a resolver that hangs | tests/operate/nodes.rs | a_resolver_that_hangs_delays_neither_start_nor_service_nor_end |
//! | who waits at SIGTERM is told at once | tests/proxy/waiting.rs | who_waits_when_the_process_drains_is_told_at_once_and_what_runs_runs_on |
//! | a service manager is told | tests/process.rs | a_service_manager_is_told_when_it_is_ready_reloads_and_drains |
//! | IPv6 | tests/operate/nodes.rs | ipv6_nodes_and_clients_are_served_and_one_listener_takes_both_families |
//! | nodes added and removed under streams | tests/operate/nodes.rs | nodes_are_added_and_removed_under_streams |
//! | a rolling upgrade | tests/operate/drain.rs | nodes_are_upgraded_in_turn_and_no_client_notices |
//! | connection bound reached: probes still answer | tests/proxy/bounds.rs | i8_the_last_connections_are_kept_for_probes |
//! | out of files | tests/process.rs | i8_out_of_files_it_waits_without_spinning_and_says_so_and_recovers |

#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "in a test, a panic is the message")]

#[path = "../support/mod.rs"]
mod support;

mod clock;
mod disk;
mod loads;
mod names;
mod nodes;
mod promises;
mod sick;

use std::path::Path;

/// The rows of a table in a file's header, three cells each, but for the one that begins with `head`.
pub(crate) fn rows(text: &'static str, head: &str) -> Vec<[String; 3]> {
    let row = |line: &'static str| {
        let cells: Vec<&str> = line.strip_prefix("//! | ")?.strip_suffix(" |")?.split(" | ").collect();
        <[&str; 3]>::try_from(cells).ok().map(|cells| cells.map(str::to_owned))
    };
    text.lines().filter_map(row).filter(|[first, ..]| first != head).collect()
}

/// Fails, naming what is told, if the file has no such test.
pub(crate) fn assert_tests_exist(told: &str, file: &str, test: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{told}: {file}: {error}"));
    let head = format!("fn {test}(");
    let at = text.find(&head).unwrap_or_else(|| panic!("{told}: {file} has no test {test}"));
    let before = text[..at].trim_end_matches("async ").trim_end();
    let marked = before.ends_with("]") && before[before.rfind("#[").unwrap()..].contains("test");
    assert!(marked, "{told}: {test} in {file} is no test");
}

#[test]
fn every_story_names_a_test_that_exists() {
    let table = rows(include_str!("main.rs"), "story");
    assert!(table.len() > 25, "the table is read: {}", table.len());
    for [story, file, test] in table {
        assert_tests_exist(&story, &file, &test);
    }
}
