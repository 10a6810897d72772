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
mod work;

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
    work::tiles_of_roots_come_first_and_deep_ones_last,
    work::tiles_of_hopper_are_ordered_by_class_of_length,
    warps::f32_rounds_to_bf16,
    warps::lanes_exchange_values_and_votes,
    warps::cp_async_completes_by_group,
    warps::ldmatrix_loads_fragments,
    warps::mma_multiplies_fragments,
    barriers::mbarrier_phases_protect_a_ring,
    barriers::named_barriers_synchronise_some_warps,
    barriers::semaphore_orders_blocks,
    barriers::clusters_access_distributed_shared_memory,
    barriers::registers_move_between_warpgroups,
    boxes::tma_loads_boxes,
    boxes::tma_stores_boxes,
    boxes::tma_adds_boxes,
    boxes::tma_multicast_reaches_both_blocks,
    products::wgmma_operands_along_k,
    products::wgmma_operands_across_k,
    products::wgmma_operands_without_swizzle,
    products::wgmma_operands_in_registers,
}
