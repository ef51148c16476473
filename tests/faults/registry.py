"""The faults that Relight must survive, and for each the tests that bring it about and judge what follows.

The scenarios are those of the fault model: what the literature, the trackers of the peers and Kubernetes' own code say
goes wrong. A scenario is as expected when every one of its tests passes.
"""

from dataclasses import dataclass
from enum import StrEnum

COUNT = 45


class Made(StrEnum):
    """How the fault came about."""

    REAL = "really happened"
    WRITTEN = "status written by the test"


@dataclass(frozen=True)
class Scenario:
    """`tests`: node ids below tests/; one without its parameters stands for all of them."""

    number: int
    title: str
    tests: tuple[str, ...]
    made: Made = Made.REAL

    @property
    def place(self) -> str:
        """cluster | local | unit: what it takes at most."""
        folders = {test.partition("/")[0] for test in self.tests}
        return next((place for place in ("cluster", "local") if place in folders), "unit")


SCENARIOS = (
    Scenario(
        1, "SIGTERM for one member in mid-step",
        ("local/test_same_weights.py::test_a_node_is_preempted", "trainer/test_stop.py::test_a_stopped_job_goes_on_to_the_same_end"),
    ),
    Scenario(2, "SIGTERM for all members at once", ("local/test_process_faults.py::test_all_members_are_told_to_leave_at_once",)),
    Scenario(3, "SIGTERM while the first world is being formed", ("local/test_process_faults.py::test_a_member_told_to_leave_before_it_has_begun_goes_at_once",)),
    Scenario(
        4,
        "SIGTERM in an evaluation, or in a wait for data",
        (
            "local/test_process_faults.py::test_a_member_told_to_leave_in_a_wait_of_the_users_code_leaves_within_its_grace",
            "trainer/test_stop.py::test_random_victims_and_delays_end_in_one_step",
        ),
    ),
    Scenario(
        5, "SIGTERM while a checkpoint is written",
        ("local/test_process_faults.py::test_a_member_told_to_leave_while_a_checkpoint_is_written",),
    ),
    Scenario(
        6, "a second SIGTERM in the grace period",
        ("local/test_process_faults.py::test_a_second_sigterm_changes_nothing_and_loader_processes_take_no_part",),
    ),
    Scenario(
        7, "SIGTERM with loader processes",
        (
            "local/test_process_faults.py::test_a_second_sigterm_changes_nothing_and_loader_processes_take_no_part",
            "trainer/test_data_exact.py::test_loader_processes_ignore_sigterm_and_end_with_the_iterator",
        ),
    ),
    Scenario(
        8, "a grace period too short for the save",
        ("local/test_process_faults.py::test_a_grace_period_too_short_for_the_save_costs_no_more_than_the_last_checkpoint",),
    ),
    Scenario(9, "SIGKILL of a rank", ("local/test_process_faults.py::test_a_killed_rank_is_a_failure_that_costs_no_step",)),
    Scenario(
        10, "SIGKILL of torch's elastic agent",
        ("local/test_process_faults.py::test_a_killed_elastic_agent_leaves_no_orphans_and_costs_no_step",),
    ),
    Scenario(
        11, "SIGKILL of the agent; deletion by force",
        (
            "local/test_process_faults.py::test_a_killed_agent_takes_its_member_along_and_no_other",
            "local/test_process_faults.py::test_a_member_lost_while_a_checkpoint_is_written_is_not_answered_with_waiting_for_the_disk",
            "local/test_same_weights.py::test_a_node_is_lost",
            "cluster/test_faults.py::test_a_killed_container_costs_no_step_and_no_budget",
            "cluster/test_operator.py::test_a_disruption_costs_no_step_and_no_budget[deleted by force]",
        ),
    ),
    Scenario(
        12, "the master's pod is killed",
        (
            "local/test_process_faults.py::test_a_killed_agent_takes_its_member_along_and_no_other[0]",
            "cluster/test_operator.py::test_a_disruption_costs_no_step_and_no_budget[the master's pod deleted]",
        ),
    ),
    Scenario(
        13, "two members lost at once, and one in the recovery",
        ("local/test_process_faults.py::test_two_members_lost_at_once_and_another_in_the_recovery",),
    ),
    Scenario(
        14,
        "a rank is stopped (SIGSTOP)",
        (
            "local/test_stalled_workers.py::test_a_stopped_worker_and_one_that_loops_with_the_gil_held_are_found_named_and_left_behind",
            "unit/test_stalls.py::test_the_culprit_is_named_and_the_generation_ends_as_a_failure",
        ),
    ),
    Scenario(
        15,
        "an endless loop in the user's step, the GIL held",
        (
            "local/test_stalled_workers.py::test_a_stopped_worker_and_one_that_loops_with_the_gil_held_are_found_named_and_left_behind",
            "unit/test_stalls.py::test_what_a_rank_is_at_shows_in_its_innermost_frame",
        ),
    ),
    Scenario(
        16, "a member is cut off from the network",
        (
            "cluster/test_faults.py::test_a_member_that_is_cut_off_is_replaced_and_does_no_harm_when_it_is_back",
            "trainer/test_checkpoint_folder.py::test_what_a_zombie_slipped_past_the_fence_is_never_read",
        ),
    ),
    Scenario(
        17, "a machine is NotReady, its pods still Running",
        (
            "cluster/test_operator.py::test_a_dead_machine_is_left",
            "unit/test_kube_reconciler.py::test_members_on_a_dead_machine_are_replaced_after_the_wait",
        ),
    ),
    Scenario(
        18, "a pod that stays Terminating on a dead machine",
        (
            "cluster/test_faults.py::test_a_pod_that_cannot_end_is_left_behind",
            "cluster/test_operator.py::test_a_dead_machine_is_left",
        ),
    ),
    Scenario(
        19, "evicted for the machine's memory",
        (
            "unit/test_kube_classifier.py::test_the_end_has_its_cause_and_class[machine pressure]",
            "unit/test_kube_classifier.py::test_the_end_has_its_cause_and_class[1.20 machine pressure]",
        ),
        Made.WRITTEN,
    ),
    Scenario(
        20, "killed for its memory, evicted for its own limits",
        (
            "cluster/test_faults.py::test_a_member_killed_for_its_memory_is_retried_so_often_and_told_why",
            "unit/test_kube_recorded_pods.py::test_an_end_that_happened_has_its_cause[out-of-memory]",
            "unit/test_kube_recorded_pods.py::test_an_end_that_happened_has_its_cause[own-limit]",
        ),
    ),
    Scenario(
        21, "a machine is shut down in order",
        (
            "unit/test_kube_classifier.py::test_the_end_has_its_cause_and_class[machine shutdown]",
            "unit/test_kube_classifier.py::test_the_end_has_its_cause_and_class[1.20 machine shutdown]",
        ),
        Made.WRITTEN,
    ),
    Scenario(
        22, "a disruption is announced and does not come",
        (
            "cluster/test_faults.py::test_a_disruption_that_is_announced_and_withdrawn_changes_nothing",
            "unit/test_kube_classifier.py::test_a_disruption_that_no_deletion_followed_says_nothing",
        ),
        Made.WRITTEN,
    ),
    Scenario(
        23, "evicted where Kubernetes marks no disruption (1.20)",
        (
            "cluster/test_operator.py::test_a_disruption_costs_no_step_and_no_budget[evicted]",
            "unit/test_kube_recorded_pods.py::test_an_end_that_happened_has_its_cause[deleted-deaf]",
            "unit/test_kube_classifier.py::test_the_end_has_its_cause_and_class[143 while being deleted]",
        ),
    ),
    Scenario(24, "somebody deletes a pod", ("cluster/test_operator.py::test_a_disruption_costs_no_step_and_no_budget[deleted]",)),
    Scenario(
        25, "an exception on rank 3 alone",
        ("local/test_process_faults.py::test_the_rank_that_raised_is_named_with_its_place_and_its_peers_are_not",),
    ),
    Scenario(
        26,
        "the same exception at the same step twice",
        (
            "local/test_failures.py::test_the_same_exception_at_the_same_step_twice_is_given_up",
            "unit/test_verdict.py::test_the_same_exception_at_the_same_step_again",
            "unit/test_verdict.py::test_what_is_between_two_equal_exceptions_does_not_hide_them_but_a_rule_does",
        ),
    ),
    Scenario(
        27, "one rank ends early with 0",
        ("local/test_process_faults.py::test_a_rank_that_ends_early_without_an_error_is_no_success",),
    ),
    Scenario(
        28,
        "a crash loop before the first step",
        (
            "local/test_failures.py::test_a_failure_before_anything_is_done_is_given_up_once_it_has_come_often_enough",
            "unit/test_verdict.py::test_no_progress_ends_what_the_budget_would_not",
            "unit/test_verdict.py::test_backoff_doubles_up_to_its_maximum",
        ),
    ),
    Scenario(
        29, "the newest checkpoint is damaged",
        (
            "local/test_bad_checkpoints.py::test_the_checkpoint_before_a_damaged_one_is_used_and_that_is_said",
            "trainer/test_checkpoint_folder.py::test_one_flipped_bit_anywhere_and_the_one_before_is_used",
            "trainer/test_checkpoint_objects.py::test_a_damaged_one_is_set_aside_and_the_one_before_is_used",
        ),
    ),
    Scenario(
        30, "killed at every point of a save",
        (
            "trainer/test_checkpoint_crash.py::test_a_crash_at_every_step_of_a_save_leaves_a_loadable_checkpoint",
            "trainer/test_checkpoint_objects.py::test_a_writer_that_dies_anywhere_leaves_what_loads_and_the_manifest_comes_last",
            "trainer/test_snapshots.py::test_a_writer_killed_at_any_moment_costs_at_most_the_write_it_was_in",
        ),
    ),
    Scenario(
        31, "the storage is full, fails, refuses",
        (
            "trainer/test_checkpoint_saver.py::test_a_storage_that_fails_is_told_and_training_goes_on",
            "trainer/test_train_storage.py::test_a_far_and_broken_store_costs_checkpoints_and_nothing_else",
            "trainer/test_checkpoint_objects.py::test_a_refusal_fails_the_save_on_all_ranks_and_costs_nothing_older",
        ),
    ),
    Scenario(
        32, "the storage is slow",
        (
            "trainer/test_checkpoint_saver.py::test_a_slow_storage_is_written_to_beside_the_training",
            "trainer/test_checkpoint_saver.py::test_a_store_that_a_thread_waits_on_holds_nobody_up",
        ),
    ),
    Scenario(
        33, "all checkpoints are damaged",
        (
            "local/test_bad_checkpoints.py::test_with_no_sound_checkpoint_the_job_ends_and_says_so",
            "local/test_bad_checkpoints.py::test_a_wiped_checkpoint_folder_is_not_taken_for_a_new_job",
        ),
    ),
    Scenario(
        34,
        "4, then 2, then 8 ranks",
        (
            "trainer/test_train_worlds.py::test_four_ranks_then_two_then_eight_then_three_do_what_four_do",
            "trainer/test_sampler.py::test_every_part_is_what_it_is_in_the_full_world",
        ),
    ),
    Scenario(
        35, "resumed in mid-epoch with AMP, on 4 ranks",
        (
            "trainer/test_train_cut.py::test_a_training_with_everything_in_it_can_be_cut_after_any_step",
            "trainer/test_train_exact.py::test_a_job_that_loses_a_member_ends_with_the_same_weights",
            "trainer/test_replicas.py::test_the_warm_up_makes_a_resumed_process_sum_as_one_that_never_stopped",
        ),
    ),
    Scenario(
        36, "buffers of BatchNorm in a save beside the training",
        (
            "trainer/test_train_restore.py::test_at_each_steps_end_all_ranks_hold_the_same_state",
            "trainer/test_checkpoint_saver.py::test_a_slow_storage_is_written_to_beside_the_training",
        ),
    ),
    Scenario(
        37, "the wall clock jumps by an hour",
        (
            "local/test_process_faults.py::test_a_wall_clock_that_jumps_changes_nothing",
            "local/test_members.py::test_an_end_is_told_by_the_runners_clock_which_does_not_jump",
            "unit/test_coordinator.py::test_ages_are_counted_back_from_the_moment_of_the_report",
        ),
    ),
    Scenario(
        38, "the operator is killed, in a recovery too",
        (
            "cluster/test_leaders.py::test_a_leader_killed_about_a_loss_counts_it_once",
            "cluster/test_operator.py::test_the_leaders_end_in_mid_recovery_changes_nothing",
            "local/test_benchmarks.py::test_a_runner_that_is_killed_and_started_again_runs_the_same_job",
            "unit/test_plan_machine.py::test_plan_survives_every_interleaving",
        ),
    ),
    Scenario(
        39, "the API server ends, refuses, forgets",
        (
            "cluster/test_faults.py::test_what_happens_while_the_api_server_is_away_is_not_lost",
            "unit/test_kube_errors.py::test_an_answer_is_one_class",
            "unit/test_kube_reconciler.py::test_a_pod_that_vanished_unseen_is_found_missing",
            "unit/test_kube_reconciler.py::test_a_create_whose_answer_was_lost_is_asked_for_again_by_name",
        ),
    ),
    Scenario(
        40, "suspended, edited, deleted while a member leaves",
        (
            "cluster/test_faults.py::test_a_job_that_is_suspended_while_a_member_leaves_drains_once_and_goes_on",
            "local/test_stops.py::test_ctrl_c_in_the_middle_of_a_recovery_keeps_what_only_a_survivor_holds",
        ),
    ),
    Scenario(
        41, "a replacement that cannot be scheduled",
        (
            "cluster/test_sizes.py::test_a_job_whose_replacement_finds_no_machine_goes_on_as_fewer_and_grows_back",
            "local/test_elastic.py::test_a_job_goes_on_as_fewer_and_grows_back_on_the_same_samples",
            "local/test_elastic.py::test_survivors_give_their_machines_back_and_the_job_goes_on_from_their_step",
        ),
    ),
    Scenario(42, "a storm: twenty kills in ten minutes", ("local/test_process_faults.py::test_a_storm_of_kills",)),
    Scenario(
        43,
        "a member of an old generation wakes up",
        (
            "trainer/test_launcher.py::test_a_store_of_another_run_is_not_joined",
            "trainer/test_checkpoint_folder.py::test_a_zombie_may_not_save_once_a_newer_generation_has_begun",
            "trainer/test_checkpoint_objects.py::test_zombies_are_shut_out",
            "unit/test_commands.py::test_command",
        ),
    ),
    Scenario(
        44, "the new generation's port is taken",
        (
            "local/test_process_faults.py::test_a_port_that_is_taken_costs_one_generation",
            "trainer/test_launcher.py::test_a_taken_store_port_is_told_and_another_order_works",
        ),
    ),
    Scenario(
        45,
        "a machine on which members end again and again",
        (
            "cluster/test_faults.py::test_a_machine_on_which_members_are_killed_is_avoided",
            "unit/test_blame.py::test_a_second_end_on_one_machine_makes_it_avoided_and_says_so",
            "unit/test_kube_pods.py::test_a_member_is_kept_from_avoided_machines_by_their_names",
        ),
    ),
)  # fmt: skip

# Scenarios without a test that brings them about as a whole, and what there is of it.
OPEN: dict[int, str] = {}
