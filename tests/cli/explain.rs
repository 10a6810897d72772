//! `mapl bench --explain`: its floors against values computed by hand, and the contents of its text.

use crate::workbench::Bench;

/// Returns the text about the calls of an op on the H200.
fn explained(bench: &Bench, words: &str) -> String {
    bench.run(&format!("bench --gpu h200 --explain {words}")).ok().out
}

/// The H200's rates are 4.3 TB/s and 790 TFLOP/s.
#[test]
fn floors_are_those_computed_by_hand() {
    let bench = Bench::new();
    // Query, key and value projection of 8192 tokens: x 8192*896*2 = 14,680,064, weight 1152*896*2 =
    // 2,064,384, y 8192*1152*2 = 18,874,368 bytes: 35,618,816 / 4.3e12 = 8.28 us; 2*8192*896*1152 =
    // 16,911,433,728 FLOPs / 790e12 = 21.41 us.
    let linear = explained(&bench, "linear_fwd --shape qkv");
    for part in [
        "linear_fwd qwen2.5-0.5b qkv tokens=8192 inputs=896 outputs=1152 (bf16 on h200)",
        "35618816 bytes, 16911433728 FLOPs: 474.8 FLOP/byte; this GPU computes 183.7 FLOPs while it moves a byte",
        "8.28 us by bytes at 4.30 TB/s, 21.41 us by FLOPs at 790 TFLOP/s: 21.41 us, set by FLOPs",
        "GEMM         8192 x 1152 x 896: ",
        "tensor-core products",
        "x the floor\n  measured     not measured on this machine\n",
        "\n  limit        the tile: start and epilogue around a main loop over k = 896",
    ] {
        assert!(linear.contains(part), "{part:?} is not in {linear}");
    }
    // SwiGLU of 8192 rows of 4864: gate and up 2*8192*4864*2 = 159,383,552, act 79,691,776 bytes: 239,075,328
    // / 4.3e12 = 55.60 us. FLOPs of such ops overlap with the loads and do not count.
    let glu = explained(&bench, "glu_fwd");
    for part in ["239075328 bytes", "55.60 us by bytes", ": 55.60 us, set by bytes", "launch       glu_fwd_bf16: "] {
        assert!(glu.contains(part), "{part:?} is not in {glu}");
    }
    // The prediction is a launch of 1.8 us plus the time for the bytes.
    assert!(glu.contains("predicted    57.40 us, 1.03x the floor"), "{glu}");
    // RMSNorm with residual sum in f32 over 2048 rows of 896: x, residual, sum and y of 2048*896*4 =
    // 7,340,032 bytes each and rstd 8,192: 29,368,320 / 4.3e12 = 6.83 us.
    let norm = explained(&bench, "norm_fwd --tokens 2048 --dtype f32");
    for part in [
        "29368320 bytes",
        "6.83 us by bytes",
        "set by bytes",
        "launch       norm_fwd_128_f32: ",
        "predicted    not modelled",
    ] {
        assert!(norm.contains(part), "{part:?} is not in {norm}");
    }
}

#[test]
fn the_binding_limit_and_the_profilers_command_are_named() {
    let bench = Bench::new();
    // 16 rows of 896 in bf16 need 27 ns; a launch needs 1.8 us.
    let norm = explained(&bench, "norm_fwd --tokens 16 --ncu");
    assert!(norm.contains("limit        launches: 1 of at least 1.8 us each take longer than the floor"), "{norm}");
    assert!(norm.contains(" us by bytes") && !norm.contains(" 0.00 us"), "{norm}");
    assert!(
        norm.contains("profiler     ncu --set full --metrics gpu__time_duration.sum,")
            && norm.contains("--csv --page raw")
            && norm.contains("norm_fwd_32_bf16"),
        "{norm}"
    );
    // The prediction is 33.3 us, 3.5 times the floor.
    let attention = explained(&bench, "attention_fwd --tokens 8192");
    assert!(attention.contains("limit        the work list: instructions around the products"), "{attention}");
    let words = "bench --explain nothing";
    bench.run(words).fails(2, &["--explain \"nothing\" is unknown"]);
    bench.run("bench --explain norm_fwd --gpu abacus").fails(2, &["--gpu abacus: not a known GPU"]);
    bench.run("bench --gpu h200").fails(2, &["--explain"]);
}

/// Profile of RMSNorm over 2048 rows of 896 in f32, in the format of `ncu --csv --page raw`.
const PROFILE: &str = r#"==PROF== Connected to process 4711
"ID","Process ID","Kernel Name","Grid Size","Device","dram__bytes.sum","dram__throughput.avg.pct_of_peak_sustained_elapsed","gpu__time_duration.sum","l1tex__data_bank_conflicts_pipe_lsu.sum","launch__registers_per_thread","sm__throughput.avg.pct_of_peak_sustained_elapsed","sm__warps_active.avg.pct_of_peak_sustained_active"
"","","","","","Mbyte","%","us","","register/thread","%","%"
"0","4711","norm_fwd_128_f32(const float *, const float *)","(BLOCKS, 1, 1)","0","30.1","70.5","8.0","1,024","40","12.5","80.1"
"1","4711","norm_fwd_128_f32(const float *, const float *)","(BLOCKS, 1, 1)","0","28.6","71.5","9.0","1,024","40","12.7","79.9"
==PROF== Disconnected from process 4711
"#;

#[test]
fn metrics_of_the_profiler_are_joined_to_the_call_by_kernel_and_grid() {
    let bench = Bench::new();
    let words = "norm_fwd --tokens 2048 --dtype f32 --ncu-csv profile.csv";
    let plain = explained(&bench, "norm_fwd --tokens 2048 --dtype f32");
    let blocks = plain.split("norm_fwd_128_f32: ").nth(1).unwrap().split(' ').next().unwrap();
    bench.write("profile.csv", PROFILE.replace("BLOCKS", blocks));
    let text = explained(&bench, words);
    // Means of two launches: 8.5 us and 29.35 MB, against 29,368,320 bytes of the contract.
    for part in [
        "ncu          norm_fwd_128_f32: 2 launch(es), 8.50 us, 29.35 MB of DRAM, 71% of the DRAM peak, 13% of the SM peak, \
         80% of the warps active, 1024 bank conflicts, 40 registers",
        "by ncu       8.50 us in all kernels; 1.00x the bytes of the contract",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let refused = |parts: &[&str]| drop(bench.run(&format!("bench --gpu h200 --explain {words}")).fails(2, parts));
    bench.write("profile.csv", PROFILE.replace("BLOCKS", "7"));
    refused(&["profiled with 7 blocks, but this call launches", "a different call"]);
    bench.write("profile.csv", PROFILE.replace("norm_fwd_128_f32", "memset"));
    refused(&["has no launch of this call of norm_fwd; its kernels are memset"]);
    for time in ["nan", "-8.0"] {
        bench.write("profile.csv", PROFILE.replace("BLOCKS", blocks).replace("\"8.0\"", &format!("\"{time}\"")));
        bench.run(&format!("bench --gpu h200 --explain {words}")).fails(3, &["is not a number of at least 0"]);
    }
    bench.write("profile.csv", "nothing");
    bench.run(&format!("bench --gpu h200 --explain {words}")).fails(3, &["profile.csv: has no line of columns"]);
    let two = "bench --gpu h200 --explain linear_fwd --ncu-csv profile.csv";
    bench.run(two).fails(2, &["--ncu-csv: the profile is of one call, but "]);
}
