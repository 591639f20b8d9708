//! Passive followers, case by case: see `quorate_tests::passive`.

use quorate_tests::passive;

// Rules B1, B2.
#[test]
fn a_completed_record_survives_a_change_of_leader() {
    passive::a_completed_record_survives_a_change_of_leader();
}

// Rules B1, B2, B3.
#[test]
fn who_was_fenced_is_confirmed_in_another_life_only() {
    passive::who_was_fenced_is_confirmed_in_another_life_only();
}

// Rule B4.
#[test]
fn a_completed_record_survives_the_end_of_its_lane() {
    passive::a_completed_record_survives_the_end_of_its_lane();
}

// Rule B2.
#[test]
fn the_same_owner_is_fenced_too() {
    passive::the_same_owner_is_fenced_too();
}

// Rule B2.
#[test]
fn a_ring_is_read_in_order() {
    passive::a_ring_is_read_in_order();
}

// Rule B1.
#[test]
fn only_what_is_confirmed_counts() {
    passive::only_what_is_confirmed_counts();
}
