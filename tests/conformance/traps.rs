//! The traps of the contract's last page, each with what keeps the gate out of it: a case of this suite, a test elsewhere
//! (which must exist under that name), or why there is no such trap for a gate.

use std::path::PathBuf;

/// What guards a trap.
enum Guard {
    /// A case of this suite.
    Case(u16),
    /// A test: file, function.
    Test(&'static str, &'static str),
    /// No trap for us.
    Never(&'static str),
}

use Guard::{Case, Never, Test};

const TRAPS: &[(u16, &str, &[Guard])] = &[
    (
        1,
        "`stream` defaults differ",
        &[Case(40), Case(64), Test("tests/scan.rs", "stream_follows_the_routes_default_and_type")],
    ),
    (2, "loads are plain JSON although `stream` is true", &[Case(36), Case(38), Case(95)]),
    (3, "an error before the first token keeps its status", &[Case(28), Case(47)]),
    (
        4,
        "errors in mid-stream vanish on `/v1`",
        &[Case(72), Test("tests/recordings/passing.rs", "i3_i7_recorded_answers_pass_unchanged_and_are_counted_right")],
    ),
    (
        5,
        "a clean end without `done` can be legal",
        &[
            Case(72),
            Case(95),
            Test("src/proxy/tail/tests.rs", "an_answer_that_may_be_anything_is_never_called_complete"),
        ],
    ),
    (
        6,
        "the type of a stream can be wrong",
        &[
            Case(70),
            Test("src/proxy/tail/tests.rs", "recorded_answers_are_counted_exactly_however_they_are_cut_into_pieces"),
        ],
    ),
    (
        7,
        "500 does not mean a bad node",
        &[Case(45), Test("src/proxy/attempts.rs", "only_errors_of_the_node_are_tried_elsewhere")],
    ),
    (
        8,
        "a wrong 404 becomes a pull",
        &[
            Test("tests/proxy/waiting.rs", "a_model_that_only_a_node_that_is_down_has_is_503_and_never_404"),
            Test("tests/proxy/waiting.rs", "a_stale_404_of_one_node_never_hides_another_that_is_down_or_busy"),
            Test("tests/proxy/isolation.rs", "i5_a_model_that_moved_between_two_polls_is_found_where_it_is"),
            Test("tests/proxy/isolation.rs", "i5_what_no_node_has_any_more_is_404_and_what_a_disk_lost_is_503"),
        ],
    ),
    (
        9,
        "cloud names are in no list, and headers leak there",
        &[
            Case(92),
            Test("tests/proxy/bytes.rs", "i7_credentials_origin_and_what_is_ours_never_reach_a_node"),
            Test("src/fleet/listing/tests.rs", "remote_stubs_are_listed_where_they_may_run"),
        ],
    ),
    (
        10,
        "two names, one runner",
        &[
            Test("tests/fleet.rs", "two_names_of_one_model_share_its_slots"),
            Test("src/fleet/facts/tests/capacity.rs", "ps_says_what_is_loaded_by_weights_not_by_name"),
        ],
    ),
    (
        11,
        "`num_ctx` disagreements reload models",
        &[Test("tests/scan.rs", "runner_options_are_those_with_a_value_and_the_exact_name")],
    ),
    (
        12,
        "a node's queue does not protect a loaded model",
        &[Test("tests/proxy/waiting.rs", "a_hard_limit_holds_and_waiting_is_first_come_first_served")],
    ),
    (
        13,
        "who leaves a load takes it along",
        &[Case(76), Test("tests/proxy/leaving.rs", "i12_a_cold_load_outlives_its_client_and_keeps_its_permit")],
    ),
    (14, "`max_completion_tokens` is ignored", &[Case(64)]),
    (15, "ids repeat", &[Never("nothing is keyed on an id of an answer; they pass as they are")]),
    (16, "`data` is null when there is nothing", &[Case(11)]),
    (
        17,
        "show and dates differ from node to node",
        &[
            Case(12),
            Test("src/fleet/listing/tests.rs", "one_name_on_many_nodes_is_one_entry_with_the_latest_date"),
            Never("show comes from one node, the first in the configuration, unread"),
        ],
    ),
    (
        18,
        "digests have a prefix in some places",
        &[Case(12), Case(82), Test("src/fleet/fanout/ask.rs", "digests_have_two_forms")],
    ),
    (19, "`/api/embeddings` takes names to the letter", &[Case(61)]),
    (
        20,
        "blank lines kill clients",
        &[Case(40), Case(43), Test("src/dialect/tests.rs", "broken_streams_end_in_the_dialects_own_error")],
    ),
    (
        21,
        "an early `success` ends a pull",
        &[
            Case(77),
            Case(79),
            Test("tests/administration/progress.rs", "a_pull_reaches_every_node_and_is_known_when_it_says_so"),
        ],
    ),
    (
        22,
        "short digests crash the CLI",
        &[
            Test("src/fleet/listing/tests.rs", "openai_nodes_are_listed_under_v1_alone_and_in_their_own_words"),
            Never("no digest is made up: what has none is in no native list"),
        ],
    ),
    (
        23,
        "the version must be integers",
        &[Case(3), Test("src/fleet/listing/tests.rs", "the_version_is_the_lowest_that_clients_can_read")],
    ),
    (
        24,
        "an accepted connection is no readiness",
        &[
            Test("src/fleet/facts/tests/pace.rs", "an_inventory_that_blocks_during_start_up_is_asked_for_again_soon"),
            Test("tests/proxy/isolation.rs", "i9_a_node_that_never_answered_delays_neither_start_nor_service"),
        ],
    ),
    (
        25,
        "contexts differ from node to node",
        &[Test("src/fleet/listing/tests.rs", "ps_sums_sizes_and_takes_the_latest_expiry_and_the_least_context")],
    ),
    (
        26,
        "a foreign Origin or Host is refused without a word",
        &[Case(89), Test("tests/proxy/bytes.rs", "i7_credentials_origin_and_what_is_ours_never_reach_a_node")],
    ),
    (
        27,
        "the model may follow the file",
        &[Test("src/proxy/scan/multipart.rs", "the_field_is_found_wherever_it_stands")],
    ),
    (
        28,
        "prompt counts include the cache; the first guess is one",
        &[
            Case(70),
            Test("src/proxy/tail/tests.rs", "recorded_answers_are_counted_exactly_however_they_are_cut_into_pieces"),
        ],
    ),
    (29, "DELETE has a body", &[Case(86), Case(88)]),
    (
        30,
        "a blob here and a create there",
        &[Test("tests/administration/blobs.rs", "a_node_that_lacks_the_blob_is_named_before_the_create")],
    ),
    (
        31,
        "half-closed or early closed connections leak",
        &[
            Case(98),
            Test("tests/proxy/leaving.rs", "i12_clients_that_leave_at_once_cost_the_node_no_socket"),
            Test("tests/upstream/leaving.rs", "i12_over_sockets_the_close_comes_after_50_ms"),
        ],
    ),
    (
        32,
        "chunked bodies hide a departure",
        &[Case(99), Test("tests/proxy/leaving.rs", "i12_a_body_that_came_in_chunks_does_not_hide_the_leave")],
    ),
    (
        33,
        "the last chunk holds several events",
        &[
            Case(64),
            Case(100),
            Test("src/proxy/inject/tests.rs", "any_split_gives_the_stream_without_the_injected_events"),
        ],
    ),
    (
        34,
        "chat models stopped embedding",
        &[Case(97), Never("what a node says of it is passed on: 501 is no fault of the node, and no other is asked")],
    ),
    (
        35,
        "digests of created models differ",
        &[
            Test("tests/fleet.rs", "nodes_with_different_digests_are_flagged_and_listed_once"),
            Test("src/fleet/facts/tests/inventories.rs", "nodes_that_disagree_about_a_digest_all_serve_it"),
        ],
    ),
    (
        36,
        "lists are ordered by whole seconds",
        &[Case(12), Test("src/fleet/listing/tests.rs", "the_order_of_nodes_does_not_decide")],
    ),
    (
        37,
        "`completed` may never reach `total`",
        &[Case(79), Test("src/fleet/fanout/merge/tests.rs", "a_layer_is_whole_once_its_node_verifies")],
    ),
    (
        38,
        "HEAD errors announce a length",
        &[
            Case(83),
            Case(101),
            Test("tests/upstream/exchange.rs", "a_head_and_answers_without_body_end_with_their_head"),
        ],
    ),
    (
        39,
        "a reply can be held back until the body is there",
        &[Case(89), Test("tests/proxy/front.rs", "an_early_answer_is_read_beside_a_body_that_nobody_wants")],
    ),
    (40, "texts show paths of a node", &[Case(80), Never("texts of nodes are passed on, never compared")]),
    (41, "SIGKILL leaves the runner behind", &[Never("the gate starts and ends no node")]),
    (42, "an empty `model` beside the real `name`", &[Case(25), Case(79), Case(87)]),
    (
        43,
        "one text has three wire forms",
        &[
            Case(28),
            Case(29),
            Case(47),
            Test("src/dialect/tests.rs", "refusals_are_what_real_servers_say_byte_for_byte"),
        ],
    ),
    (44, "vectors are raw before v0.30", &[Case(61), Never("numbers pass as they are")]),
];

#[test]
fn every_trap_is_guarded() {
    let cases: Vec<u16> = crate::all().iter().map(|case| case.number).collect();
    let numbers: Vec<u16> = TRAPS.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (1..=44).collect::<Vec<u16>>());
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    for (number, what, guards) in TRAPS {
        assert!(!what.is_empty() && !guards.is_empty(), "{number}");
        for guard in *guards {
            match guard {
                Case(case) => assert!(cases.contains(case), "{number} {what}: case {case} is not played"),
                Test(file, name) => {
                    let text =
                        std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
                    assert!(text.contains(&format!("fn {name}(")), "{number} {what}: no {name} in {file}");
                }
                Never(why) => assert!(!why.is_empty(), "{number}"),
            }
        }
    }
}
