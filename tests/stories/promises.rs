//! What an operator may rely on, line by line, and the test that holds it: time-outs, bounds, health, routing, ledger,
//! configuration, life and death.
//!
//! The table is read by [`every_promise_names_a_test_that_exists`]; several tests of one file are separated by blanks.
//!
//! | promise | file | tests |
//! |---|---|---|
//! | every default stands in the embedded file | src/config/tests.rs | the_embedded_file_is_the_default the_embedded_file_names_every_key_and_its_examples_are_right |
//! | `connect`: the next candidate | tests/upstream/exchange.rs | refused_unknown_and_slow_to_connect connect_of_a_node_wins_over_the_global_one the_second_address_is_tried |
//! | a failed connection costs the client nothing | tests/proxy/failover.rs | i6_before_the_first_byte_another_node_answers |
//! | `request_head`, `request_body_idle`: 408 and closed; `client_idle`: closed | tests/proxy/bad_input.rs | slow_and_silent_clients_are_cut_off |
//! | `request_head` of a head behind a request | tests/proxy/front.rs | a_head_that_began_behind_a_request_has_its_time_too |
//! | `pool_idle`, or what the node's `Keep-Alive` says less 1 s | src/proxy/pool.rs | the_nodes_promise_is_kept_with_a_margin a_constant_max_ends_one_before_the_nodes_close |
//! | no `first_byte`, but a suspect after two silent requests on loaded models | src/fleet/progress.rs | two_silent_requests_make_a_suspect one_silent_request_is_a_long_prompt |
//! | whoever waits for a load makes no suspect | tests/stories/sick.rs | a_node_that_loads_for_long_is_no_suspect |
//! | a suspect gets no new work | src/fleet/facts/tests/pace.rs | requests_without_a_byte_make_a_suspect |
//! | a suspect is named in metric and status | tests/stories/sick.rs | a_silent_node_is_named |
//! | a suspect is named in the log | src/fleet/facts/tests/pace.rs | a_suspect_is_named_in_the_log |
//! | `stream_idle`: the dialect's error, permit back | tests/proxy/bounds.rs | i8_a_node_that_falls_silent_after_its_first_byte_is_left_in_words |
//! | `client_stall`: taken as gone | tests/proxy/bounds.rs | i8_a_client_that_stalls_is_taken_as_gone |
//! | `queue_wait`, shortened by `x-herdgate-max-wait`: 503 | tests/proxy/bounds.rs | i8_waiting_ends_with_503_after_the_clients_own_bound_or_queue_wait |
//! | which time-out fired is in the log | tests/evidence/logging.rs | the_time_out_that_ended_a_request_stands_in_its_line |
//! | time-outs of a node and of a model | tests/operate/times.rs | stream_idle_of_a_model_wins_over_its_nodes_and_that_over_the_global_one client_stall_of_a_model_wins_over_its_nodes_and_that_over_the_global_one suspect_after_of_a_model_wins_over_its_nodes_and_that_over_the_global_one queue_wait_of_a_model_bounds_its_own_queue pool_idle_of_a_node_closes_its_kept_connections |
//! | `max_body`: 413 | tests/proxy/bounds.rs | i8_a_body_over_max_body_is_413_in_the_dialect_and_the_connection_closes i8_a_client_that_sends_all_of_its_too_large_body_still_reads_413 |
//! | `body_memory`: bodies wait unread, then 503 with `Retry-After` | tests/proxy/bounds.rs | i8_full_body_memory_lets_further_bodies_wait_and_then_serves_them i8_body_memory_that_stays_full_is_503_after_its_wait |
//! | blobs are streamed, never kept | tests/administration/blobs.rs | the_slowest_node_sets_the_pace_and_nothing_is_held |
//! | `unsent`: the node is not read until the client drains | tests/proxy/bounds.rs | i8_a_client_that_does_not_read_holds_the_node_back |
//! | `head`: 431 | tests/proxy/bounds.rs | i8_a_head_over_its_bound_is_431 |
//! | `queue_length`: 503 with `Retry-After` | tests/proxy/bounds.rs | i8_a_full_queue_is_503_with_retry_after_in_every_dialect |
//! | connections from the file limit, two files a request | src/shared.rs | i8_streams_and_polls_together_stay_below_the_file_limit |
//! | 64 connections kept for our own routes; beyond, accepting waits | tests/proxy/bounds.rs | i8_the_last_connections_are_kept_for_probes i8_out_of_connections_accepting_waits_and_goes_on |
//! | names beyond their bound are counted together | tests/proxy/bounds.rs | i8_names_over_their_bound_are_counted_together |
//! | names that nobody has get no id | tests/stories/names.rs | ten_thousand_unknown_names_grow_nothing |
//! | a full ring drops detail; totals stay exact, tokens go to `_lost` | tests/ledger/lost.rs | what_a_full_ring_drops_is_in_the_ledger_under_lost |
//! | health: two failed probes or one refusal down, one success up, back-off to 15 s | src/fleet/health/tests.rs | up_to_down_by_two_failed_probes up_to_down_by_one_refused_connection down_to_up_by_one_success_and_recovering down_to_down_backs_off_to_fifteen_seconds |
//! | each question at its own pace | src/fleet/facts/tests/pace.rs | each_question_keeps_its_own_pace |
//! | OpenAI-compatible nodes: `/health`, else `/v1/models` | src/fleet/facts/tests/inventories.rs | an_openai_node_serves_what_it_says |
//! | lists that time out mark nothing down; an inventory does not age | src/fleet/facts/tests/pace.rs | silence_of_lists_never_marks_a_node_down |
//! | residency older than 30 s is unknown; a load is given up after 300 s | src/fleet/facts/tests/capacity.rs | old_residency_is_unknown a_load_that_takes_too_long_is_given_up |
//! | an answer marks its model loaded at once | tests/proxy/waiting.rs | an_answer_marks_its_model_loaded_though_nobody_else_says_so what_was_loaded_and_unloaded_is_listed_before_the_next_poll |
//! | `panic_threshold` | src/fleet/facts/tests/pace.rs | when_most_nodes_fall_silent_at_once_routing_keeps_to_them when_most_nodes_refuse_they_are_down silent_nodes_that_refuse_in_the_end_are_not_kept_to |
//! | inventories are stored; names are remembered for 24 h; `inventory_shrunk` | src/fleet/facts/tests/inventories.rs | memory_survives_a_restart models_of_a_node_that_is_down_are_remembered_for_a_time names_lost_while_down_are_remembered_and_deleted_ones_are_not |
//! | a node that lost more than half has shrunk | src/fleet/facts/tests/unwell.rs | a_node_that_loses_more_than_half_at_once_has_shrunk_though_nobody_saw_it_down |
//! | unknown names are 503 while a node was never reached | tests/stories/names.rs | while_a_node_was_never_reached_an_unknown_name_is_503 |
//! | that ends after 60 s | src/fleet/facts/tests/pace.rs | a_hanging_node_delays_nothing_and_is_not_listed |
//! | clients are served after the first round or 2 s | tests/proxy/isolation.rs | i9_a_node_that_never_answered_delays_neither_start_nor_service |
//! | a refresh on a miss: every 2 s at most, 1 s at most, remembered for 5 s | src/fleet/misses.rs | one_refresh_serves_many_and_two_seconds_pass_between_two a_hanging_node_costs_a_second_at_most a_missing_name_is_not_looked_for_again_for_five_seconds |
//! | names are resolved again and again, off the workers | tests/operate/nodes.rs | a_dns_name_that_changes_is_followed_and_a_resolver_that_fails_changes_nothing a_resolver_that_hangs_delays_neither_start_nor_service_nor_end |
//! | `expand`: nodes come and go with their name | tests/operate/nodes.rs | nodes_behind_an_expanded_name_come_and_go_without_a_reload |
//! | several addresses of one family are a mistake unless `expand` | src/fleet/expansion.rs | several_addresses_are_a_mistake_unless_expanded a_name_is_followed_and_a_resolver_that_fails_or_turns_changes_nothing |
//! | `[::]` listens on both families | tests/operate/nodes.rs | ipv6_nodes_and_clients_are_served_and_one_listener_takes_both_families |
//! | two nodes that are one server are a warning | src/config/tests.rs | two_nodes_with_one_name_are_a_mistake_and_one_server_twice_a_warning |
//! | a node that answers with our own id is refused | src/fleet/facts/tests/pace.rs | the_router_itself_is_never_a_node |
//! | two names of one model share its slots | tests/fleet.rs | two_names_of_one_model_share_its_slots |
//! | differing digests are a metric and a flag, and all serve | tests/fleet.rs | nodes_with_different_digests_are_flagged_and_listed_once |
//! | hard limits hold, soft ones are a preference | tests/proxy/waiting.rs | a_hard_limit_holds_and_waiting_is_first_come_first_served a_soft_limit_is_a_preference_never_a_wall a_waiting_request_takes_the_first_slot_that_frees_wherever_it_is |
//! | the ancestor's limit is soft unless `limits: hard` | src/config/ancestor.rs | numbers_as_leniently_as_there |
//! | slots of an OpenAI-compatible node come from its `/props` | tests/fleet.rs | an_openai_node_brings_its_models_and_slots |
//! | the start prints each limit and where it comes from | src/config/tests.rs | a_description_names_nodes_limits_and_origins |
//! | the order of candidates | src/routing/tests.rs | least_relative_load_first ties_rotate loaded_then_loading_then_cold soft_limit_is_exceeded_on_the_least_loaded_copy |
//! | a further copy after `cold_spill_after`, one load at a time | src/routing/tests.rs | full_for_long_spills_to_a_further_copy loaded_nowhere_starts_one_copy_on_the_node_with_the_least_work |
//! | one cold load at a time on a node that recovers | src/routing/tests.rs | recovering_node_loads_one_model_at_a_time |
//! | a node that came back recovers for 30 s | src/fleet/facts/tests/pace.rs | a_refused_request_closes_the_node_at_once |
//! | a further copy, as configured | tests/proxy/waiting.rs | a_further_copy_starts_when_all_have_been_full_for_long no_further_copy_starts_before_cold_spill_after |
//! | `node_slots` | tests/operate/node_slots.rs | i1_two_models_share_one_slot_of_their_node_in_turn |
//! | retries before the first byte: three nodes, or one further | tests/proxy/failover.rs | i6_at_most_three_nodes_and_one_further_once_the_request_was_sent_whole |
//! | which errors are tried elsewhere | src/proxy/attempts.rs | only_errors_of_the_node_are_tried_elsewhere |
//! | retries are 20 % at most | src/routing/tests.rs | retry_budget_is_a_share_of_ten_seconds_and_at_least_a_few |
//! | no request is tried again beyond that | tests/proxy/failover.rs | i6_retries_are_no_more_than_their_budget |
//! | a cold load outlives its client and keeps its permit, `cold_load_grace` at most | tests/proxy/leaving.rs | i12_a_cold_load_outlives_its_client_and_keeps_its_permit i12_a_cold_load_whose_grace_passes_is_given_up |
//! | a client that leaves before its node was reached is counted without tokens | tests/proxy/leaving.rs | i12_a_client_that_leaves_while_its_node_is_dialled_has_cost_nothing |
//! | who waits is told at once when no node is left | tests/proxy/waiting.rs | those_that_wait_end_at_once_when_no_node_is_left |
//! | a model of OpenAI-compatible nodes alone: 501 that names the route | tests/proxy/kinds.rs | an_openai_node_serves_v1_and_the_native_routes_name_it |
//! | such models are not in `/api/tags` | src/fleet/listing/tests.rs | openai_nodes_are_listed_under_v1_alone_and_in_their_own_words |
//! | cloud names and stubs are refused unless `cloud: true` | tests/proxy/bad_input.rs | unknown_models_are_worded_as_the_route_words_them |
//! | stubs where they may run | src/routing/tests.rs | remote_stub_is_warm_where_prompts_may_leave_the_house |
//! | a ledger's row holds all of it | src/usage/series.rs | a_row_of_a_request_holds_what_it_came_to |
//! | and keeps it in the store | tests/ledger.rs | a_restart_within_a_minute_keeps_what_was_there |
//! | events fall into the minute of their end | tests/proxy/minutes.rs | i4_events_fall_into_the_minute_of_their_end_even_if_queued_across_the_boundary |
//! | a clock's steps and a restart within a minute overwrite nothing | tests/ledger.rs | a_clock_step_overwrites_nothing a_restart_within_a_minute_keeps_what_was_there a_minute_far_from_the_newest_stored_is_flagged_over_a_restart |
//! | an event of a folded day adds to the day | tests/ledger/folding.rs | an_event_of_a_folded_minute_adds_to_its_day |
//! | one commit outstanding, the fold goes on in memory, bounded | tests/ledger.rs | a_stalled_disk_delays_answers_but_not_the_fold i8_memory_is_bounded_while_no_store_can_be_had_and_sums_stay_exact nothing_is_written_when_nothing_changed |
//! | a store held by a live process is refused (75), unless not required | tests/ledger/process.rs | a_store_held_by_a_live_process_is_refused a_held_store_that_is_not_required_is_taken_when_it_is_freed |
//! | a newer schema is never touched | tests/ledger/fixture.rs | a_newer_schema_is_refused_and_left_untouched |
//! | `usage_injection` | tests/proxy/kinds.rs | usage_injection_counts_exactly_and_the_client_sees_what_it_would_see_without without_injection_streams_are_estimated_and_marked_so |
//! | it shows in the log; an open listener prints a loud line | tests/process.rs | the_start_says_what_an_operator_must_know |
//! | unknown keys, an empty key are errors (64) | tests/process/commands.rs | wrong_flags_and_wrong_configuration_exit_64_with_every_mistake |
//! | unset variables are errors | src/config/tests.rs | values_expand_from_the_environment |
//! | `--lenient` | src/config/tests.rs | lenient_makes_unknown_keys_warnings_and_nothing_else |
//! | precedence of flags, variables, file, the ancestor's variables | src/config/tests.rs | precedence_by_key variables_set_every_kind_of_key |
//! | `${VAR:-x}`; variables of a Service of our name mean nothing | src/config/tests.rs | values_expand_from_the_environment variables_set_every_kind_of_key |
//! | `https://` and passwords in URLs are mistakes in words | src/config/node_url.rs | wrong_ones_say_why a_password_is_never_shown |
//! | router keys overlap while one is changed | tests/operate/reload.rs | router_keys_rotate_under_load_without_a_dropped_request |
//! | however many keys there are, one is compared | src/proxy/keyring.rs | among_ten_thousand_keys_one_is_compared |
//! | the ancestor's file, variables and nodes | src/config/ancestor.rs | the_sample_works_as_it_is its_variables_lie_below_its_file nodes_that_cannot_be_are_mistakes_here_too |
//! | Host and Origin | tests/proxy/bad_input.rs | host_and_origin_are_checked_before_anything_else |
//! | a refusal says what to set, once a minute | tests/process.rs | a_foreign_host_is_told_what_to_set_once_a_minute |
//! | administration, node management passed through included | tests/proxy/bad_input.rs | administration_is_refused_in_ollamas_shape |
//! | reload: validated whole, the old one stays on a mistake | tests/operate/reload.rs | a_reload_with_a_typo_keeps_the_old_configuration_and_tells_every_mistake |
//! | a removed node finishes its streams | tests/operate/nodes.rs | nodes_are_added_and_removed_under_streams |
//! | live and ready without a key, HEAD too | tests/monitoring.rs | keys_open_what_they_should |
//! | live and ready over HTTP/1.0 without Host | tests/proxy/bad_input.rs | http_1_0_and_connections |
//! | the start probes the port | tests/process/commands.rs | a_held_store_exits_75_and_a_shared_port_69 a_taken_port_exits_69 |
//! | SIGTERM: not ready, still serving, `Connection: close` | tests/process.rs | i11_while_leaving_probes_say_so_and_clients_are_still_served |
//! | event streams end, who waits gets 503, streams run on | tests/proxy/waiting.rs | who_waits_when_the_process_drains_is_told_at_once_and_what_runs_runs_on |
//! | streams to `drain`, then the dialect's error | tests/process.rs | i11_streams_run_to_the_drain_deadline_and_then_end_in_words |
//! | a second SIGTERM ends now | tests/process.rs | i11_a_second_sigterm_ends_at_once_in_words |
//! | drain of a node, kept over restarts | tests/operate/drain.rs | a_drained_node_finishes_what_it_has_and_stays_drained_over_a_restart |
//! | one line for a node's change, one in 10 s at most | src/fleet/health/tests.rs | one_line_in_ten_seconds_and_the_last_state_is_told |
//! | access lines for what an operator looks for | src/access.rs | only_what_an_operator_looks_for_gets_a_line |
//! | never bodies, keys or query strings | tests/process.rs | i7_no_key_and_no_query_reaches_the_log |
//! | `x-request-id` in and out | tests/evidence/naming.rs | a_clients_id_goes_to_the_node_and_back_a_bad_one_is_replaced what_administers_models_reaches_every_node_under_the_clients_id |
//! | `x-herdgate-node`, `x-herdgate-reason`, `headers: off` | tests/evidence/naming.rs | answers_name_their_node_and_the_reason an_error_that_was_kept_names_the_node_whose_words_it_is headers_off_leaves_the_id_alone |

use crate::{assert_tests_exist, rows};

#[test]
fn every_promise_names_a_test_that_exists() {
    let rows = rows(include_str!("promises.rs"), "promise");
    assert!(rows.len() > 80, "the table is read: {}", rows.len());
    for [promise, file, tests] in rows {
        tests.split(' ').for_each(|test| assert_tests_exist(&promise, &file, test));
    }
}
