//! The faults of `mutations/` remove every barrier, fence, wait and arrival of the kernels for Hopper, each once.

use std::path::Path;

use regex::Regex;

use crate::test_names::read;

/// Calls that order threads, copies or GEMMs. `fence_async_proxy` is not among them: `isolated/fences.rs`
/// removes the proxy fences of every source line.
const CALLS: &str = r"\b(sync_block|sync_named|arrive_named|wait_mbarrier|arrive_mbarrier|arrive_expect_tx|arrive_remote_after_reads|release|release_stage|take_turn|pass_turn|fence_mbarrier_init|wgmma_fence|wgmma_wait|wgmma_commit|tma_wait_read|tma_wait|tma_commit|cp_async_wait|cp_async_commit|wait_semaphore|store_release|arrive_cluster_relaxed|wait_cluster|wait_for_earlier_launch|publish_staging|acquire_staging)(<[^>]*>)?\(";

/// Pieces of code with a call on which no result depends, each with the reason.
const FREE: [(&str, &str); 2] = [
    (
        "            pin_accumulators(scores);\n            wait_mbarrier(full_k, kv.phase);\n            kv.advance();\n",
        "the phase is complete: the wait only keeps ptxas from moving the exponentials behind the wait for dP",
    ),
    (
        "ptxas duplicates a part of the epilogue's code.\n            sync_named(1 + group, 128);\n",
        "only thread 0, which has waited for the semaphore, accesses C",
    ),
];

/// Returns the lines of a file with a call that no fault removes.
fn uncovered(file: &str, text: &str, faults: &serde_json::Value) -> Vec<String> {
    let calls = Regex::new(CALLS).unwrap();
    let of_file: Vec<(&str, &str)> = faults["faults"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|fault| fault["file"] == file)
        .map(|fault| (fault["old"].as_str().unwrap(), fault["new"].as_str().unwrap()))
        .collect();
    let mut missing = Vec::new();
    for call in calls.find_iter(text) {
        let line = text[..call.start()].rfind('\n').map_or(0, |end| end + 1);
        let head = text[line..].trim_start();
        if head.starts_with("//") || head.starts_with("DEVICE") {
            continue;
        }
        let holds = |part: &str| text.find(part).is_some_and(|at| (at..at + part.len()).contains(&call.start()));
        let removed = |(old, new): &(&str, &str)| {
            let times = |part: &str| part.matches(call.as_str()).count();
            holds(old) && times(old) > times(new)
        };
        if !of_file.iter().any(removed) && !FREE.iter().any(|(part, _)| holds(part)) {
            let number = text[..call.start()].matches('\n').count() + 1;
            missing.push(format!("{file}:{number}: {}", head.lines().next().unwrap_or_default()));
        }
    }
    missing
}

#[test]
fn every_barrier_of_the_hopper_kernels_is_removed_once() {
    let faults: serde_json::Value = serde_json::from_str(&read("tests/mutations/faults.json")).unwrap();
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("kernels");
    let names = std::fs::read_dir(kernels).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: Vec<String> =
        names.filter(|name| name.contains("_sm90.cu")).map(|name| format!("kernels/{name}")).collect();
    assert!(files.len() >= 11, "{files:?}");
    let missing: Vec<String> = files.iter().flat_map(|file| uncovered(file, &read(file), &faults)).collect();
    assert!(missing.is_empty(), "no fault removes:\n{}", missing.join("\n"));
}

#[test]
fn a_barrier_without_a_fault_is_found() {
    let text = "DEVICE void sync_block();\n    // calls sync_block()\n    sync_block();\n    tma_wait<0>();\n";
    let fault = |old: &str, new: &str| serde_json::json!({ "faults": [{ "file": "a.cu", "old": old, "new": new }] });
    assert!(uncovered("a.cu", text, &fault("    sync_block();\n    tma_wait<0>();\n", "")).is_empty());
    let only = uncovered("a.cu", text, &fault("    sync_block();\n    tma_wait<0>();\n", "    sync_block();\n"));
    assert_eq!(only, ["a.cu:3:     sync_block();".replace("     ", " ")]);
    assert_eq!(uncovered("b.cu", text, &fault("sync_block();", "")).len(), 2);
}
