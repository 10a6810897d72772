//! Behaviour of each primitive of `kernels/primitives`, written from the PTX ISA. Each test runs on
//! the emulator in three schedules and on the GPU, if there is one. A body is generic over the
//! device, so the same table checks both implementations. Errors that only the emulator reports are
//! tested in `misuse`.

mod barriers;
mod boxes;
mod harness;
mod misuse;
mod products;
mod warps;

/// Defines a test for each body, run on every available device.
macro_rules! on_devices {
    ($($module:ident::$body:ident),* $(,)?) => {
        $(
            #[test]
            fn $body() {
                harness::emulators(|device| $module::$body(device));
                harness::gpu(|device| $module::$body(device));
            }
        )*
    };
}

on_devices! {
    warps::numbers_round_to_bf16,
    warps::lanes_exchange_values_and_votes,
    warps::copies_arrive_by_groups,
    warps::matrices_load_as_fragments,
    warps::fragments_multiply,
    barriers::phases_hand_a_ring_over,
    barriers::named_barriers_join_some_warps,
    barriers::blocks_take_turns,
    barriers::clusters_share_memory,
    barriers::registers_move_between_warpgroups,
    boxes::boxes_load,
    boxes::boxes_are_stored,
    boxes::boxes_are_added,
    boxes::one_load_reaches_both_blocks,
    products::operands_along_k,
    products::operands_across_k,
    products::plain_operands,
    products::operands_in_registers,
}
