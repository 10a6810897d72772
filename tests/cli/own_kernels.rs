//! Custom kernels without a rebuild: `mapl bench --kernel` and `MAPL_KERNELS`, on the emulator.

use std::path::Path;
use std::process::Command;

use mapl::backend::kernels::emulator::Emulator;

use crate::workbench::{Bench, Done};

/// Returns a bench with a separate cache of compiled kernels, or `None` in a build without the emulator.
fn bench() -> Option<Bench> {
    if let Err(why) = Emulator::new() {
        assert!(std::env::var_os("MAPL_REQUIRE_EMULATOR").is_none_or(|v| v != "1"), "{why}");
        println!("SKIPPED: {why}");
        return None;
    }
    Some(Bench::new())
}

/// Runs a command that cannot find nvcc. `kernels` is the value of `MAPL_KERNELS`; an empty value selects the
/// shipped kernels.
fn run(bench: &Bench, words: &str, kernels: &str) -> Done {
    let mut command: Command = bench.command(words);
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV"] {
        command.env_remove(variable);
    }
    command.env("MAPL_CACHE_DIR", bench.at("cache")).env("MAPL_KERNELS", kernels);
    bench.finish(command, words)
}

fn shipped(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(name)).unwrap()
}

/// Returns the shipped kernel file `name` with the first occurrence of `from` replaced by `to`.
fn changed(name: &str, from: &str, to: &str) -> String {
    let text = shipped(name);
    assert!(text.contains(from), "{from:?} is not in {name}");
    text.replacen(from, to, 1)
}

#[test]
fn a_kernel_of_ones_own_is_verified_next_to_the_shipped_one() {
    let Some(bench) = bench() else { return };
    let words = "bench --device emulator --kernel my.cu --dtype bf16 --repeats 2 --output rows.csv";
    bench.write("my.cu", changed("gelu.cu", "value[i] *= gelu_cumulative", "value[i] *= 1.0f * gelu_cumulative"));
    let done = run(&bench, words, "").ok();
    let text = &done.out;
    for part in ["resources of a block:", "gelu_fwd_bf16", "registers and spills unknown", "blocks per multiprocessor"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let rows = mapl::bench::row::read(&bench.at("rows.csv")).unwrap();
    let found: Vec<(&str, &str)> = rows.iter().map(|row| (row.op.as_str(), row.variant.as_str())).collect();
    assert_eq!(found, [("gelu_fwd", "mapl"), ("gelu_fwd", "my.cu"), ("gelu_bwd", "mapl"), ("gelu_bwd", "my.cu")]);
    assert!(rows[1].note.contains("my.cu ("), "{}", rows[1].note);
    // The change to my.cu is only a factor of 1, so the errors of both kernels are equal.
    assert_eq!(rows[0].error_share, rows[1].error_share);
    let verdicts = text.lines().filter(|line| line.starts_with("my.cu ") && line.contains("its median")).count();
    assert_eq!(verdicts, 2, "{text}");

    // A wrong kernel gives a failed row; the row of the shipped kernel does not fail.
    bench.write("my.cu", changed("gelu.cu", "value[i] *= gelu_cumulative", "value[i] += gelu_cumulative"));
    run(&bench, words, "").fails(1, &["gelu_fwd", "failed: act is wrong at (0, 0)"]);
    let rows = mapl::bench::row::read(&bench.at("rows.csv")).unwrap();
    let failed: Vec<&str> =
        rows.iter().filter(|row| row.note.contains("is wrong")).map(|row| row.variant.as_str()).collect();
    assert_eq!(failed, ["my.cu"]);
}

#[test]
fn a_kernel_file_that_cannot_replace_a_shipped_one_is_refused_with_the_place() {
    let Some(bench) = bench() else { return };
    let words = "bench --device emulator --kernel my.cu";
    let refused = |text: String, parts: &[&str]| {
        bench.write("my.cu", text);
        run(&bench, words, "").fails(3, parts);
    };
    let both = ["my.cu:27: `", "KERNELS(256, gelu_fwd", "kernels/gelu.cu:27: `", "KERNELS(128, gelu_fwd"];
    refused(changed("gelu.cu", "KERNELS(128, gelu_fwd", "KERNELS(256, gelu_fwd"), &both);
    refused(changed("gelu.cu", "int tokens, int intermediate", "int intermediate, int tokens"), &["my.cu:27: `"]);
    refused(changed("gelu.cu", "value[i] *=", "valu[i] *="), &["my.cu: does not compile", "valu"]);
    refused(changed("gelu.cu", "KERNELS(128, gelu_fwd", "KERNELS(100, gelu_fwd"), &["my.cu:27: 100 threads"]);
    refused("EXPORT constexpr int WARP = 64;\n".to_owned() + &shipped("gelu.cu"), &["exports WARP as Int(64)"]);
    refused("int nothing;\n".into(), &["has no KERNEL or KERNELS line"]);
    let windows = changed("gelu.cu", "KERNELS(128, gelu_fwd", "KERNELS(256, gelu_fwd").replace('\n', "\r\n");
    refused(windows.replacen("// GELU", "// é GELU", 1), &both);
    refused(changed("gelu.cu", "gelu_fwd, FOR", "gelu_new, FOR"), &["no launcher has the kernel gelu_new", "my.toml"]);
    bench.write("my.cu", shipped("head_sm90.cu"));
    run(&bench, words, "").fails(2, &["no selected call launches a kernel of my.cu (", "MAPL_SM90=1"]);
    run(&bench, &format!("{words} --op gelu"), "own").fails(2, &["which MAPL_KERNELS replaces; unset it"]);
    run(&bench, "bench --device cpu --kernel my.cu", "").fails(2, &["kernels run on cuda and emulator"]);
}

/// Writes the example of docs/kernels.md into the bench.
fn example(bench: &Bench) {
    for name in ["relu_squared.cu", "relu_squared.toml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples").join(name);
        bench.write(name, std::fs::read(path).unwrap());
    }
}

#[test]
fn a_kernel_without_a_launcher_runs_by_its_sheet() {
    let Some(bench) = bench() else { return };
    example(&bench);
    let text = |name: &str| String::from_utf8(bench.bytes(name)).unwrap();
    assert!(text("relu_squared.cu").lines().count() < 40 && text("relu_squared.toml").lines().count() < 25);
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kernels.md")).unwrap();
    assert!(page.contains(&text("relu_squared.toml")), "docs/kernels.md shows another relu_squared.toml");
    let words = "bench --device emulator --kernel relu_squared.cu --repeats 2 --output rows.csv";
    run(&bench, words, "").ok();
    let rows = mapl::bench::row::read(&bench.at("rows.csv")).unwrap();
    let found: Vec<(&str, &str)> = rows.iter().map(|row| (row.op.as_str(), row.dtype.as_str())).collect();
    let of = |name: &str| rows.iter().find(|row| row.op == name).unwrap();
    assert_eq!(
        found,
        [
            ("relu_squared_fwd_bf16", "bf16"),
            ("relu_squared_bwd_bf16", "bf16"),
            ("relu_squared_fwd_f32", "f32"),
            ("relu_squared_bwd_f32", "f32")
        ]
    );
    // The tensors have 33 rows of 200 elements. The bf16 forward reads x and writes y, with 2 bytes per
    // element. The f32 backward reads x once, and reads and writes dy, with 4 bytes per element.
    assert_eq!((of("relu_squared_fwd_bf16").bytes, of("relu_squared_bwd_f32").bytes), (Some(26_400), Some(79_200)));
    assert!(rows.iter().all(|row| row.error_share.unwrap() <= 1.0), "{rows:?}");

    let sheet = text("relu_squared.toml");
    let refused = |from: &str, to: &str, code: i32, part: &str| {
        assert!(sheet.contains(from), "{from}");
        bench.write("relu_squared.toml", sheet.replacen(from, to, 1));
        run(&bench, words, "").fails(code, &[part]);
    };
    refused(
        "pow(max(x, 0), 2)",
        "pow(max(x, 0), 3)",
        1,
        "relu_squared_fwd_bf16 sheet hidden=200 tokens=33 failed: y is wrong",
    );
    refused(
        "pow(max(x, 0), 2)",
        "pow(max(z, 0), 2)",
        3,
        "[relu_squared_fwd]: y.expect: `pow(max(z, 0), 2)`: z is unknown",
    );
    refused(", expect = \"pow(max(x, 0), 2)\"", "", 3, "y.expect is missing");
    refused("[relu_squared_bwd]", "[relu_squared_back]", 3, "[relu_squared_back] does not name a kernel");
    refused("grid =", "gird =", 3, "gird is unknown; keys: grid, shared, flops, op");
    refused("tokens = 33", "tokens = 0", 3, "size tokens = 0");
    refused("tokens = 33", "rows = 33", 3, "tokens is unknown");
    refused("ceil(tokens * hidden / threads)", "tokens * hidden / threads", 3, "a whole number of at least 1");
    refused("[sizes]", "[sizes", 3, "relu_squared.toml:1: ");
    refused("\"2 * tokens * hidden\"", "-5", 3, "flops = -5 is -5; a whole number of at least 0 is needed");
    refused("flops = ", "shared = \"log(0 - 1)\"\nflops = ", 3, "is NaN; a whole number of at least 0 is needed");
    refused("flops = ", "shared = 1e15\nflops = ", 1, "bytes of shared memory; a block has at most");
    refused("tokens = 33", "tokens = 9000000000000000000", 3, "at most 536870912 are possible");
    refused("tokens = 33", "tokens = 5000000", 3, "more than 2^29 elements");
    let deep = format!("\"{}x\"", "(".repeat(900));
    refused("\"pow(max(x, 0), 2)\"", &deep, 3, "more than 64 levels");
    refused("\"pow(max(x, 0), 2)\"", "\"sum(j, 1e300, 1)\"", 1, "instead of NaN");
}

/// Benchmarks a GEMM that is written as the textbook loop. Its operands and its reference come from the
/// contract's op `linear_fwd`.
#[test]
fn a_sheet_takes_its_operands_from_an_op_of_the_contract() {
    let Some(bench) = bench() else { return };
    bench.write(
        "product.cu",
        "#include \"common.cuh\"\n\nKERNEL(64, product)(const bf16* x, const bf16* weight, bf16* y, int tokens, int inputs, int outputs) {\n\
         for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < tokens * outputs; i += gridDim.x * blockDim.x) {\n\
         float sum = 0.0f;\nfor (int k = 0; k < inputs; ++k) {\n\
         sum += to_float(x[i / outputs * inputs + k]) * to_float(weight[i % outputs * inputs + k]);\n}\n\
         y[i] = from_float<bf16>(sum);\n}\n}\n",
    );
    bench.write(
        "product.toml",
        "[sizes]\ntokens = 9\ninputs = 40\noutputs = 24\n[product]\nop = \"linear_fwd\"\ngrid = 2\n",
    );
    let words = "bench --device emulator --kernel product.cu --repeats 2";
    let done = run(&bench, words, "").ok();
    assert!(done.out.contains("1 rows measured, 0 absent, 0 skipped, 0 failed"), "{}", done.out);
    let text = String::from_utf8(bench.bytes("product.toml")).unwrap();
    bench.write("product.toml", text.replace("linear_fwd", "linear_bwd_input"));
    run(&bench, words, "").fails(3, &["[product]: the op has the operands", "which are not parameters of the kernel"]);
    bench.write("product.toml", text.replace("grid = 2", "grid = 2\nx = { shape = \"tokens\" }"));
    run(&bench, words, "").fails(3, &["x.shape = [9]: x of the op has 9 x 40 elements"]);
    bench.write("product.toml", text.replace("tokens = 9", "tokens = 900000000"));
    run(&bench, words, "").fails(3, &["op linear_fwd: an operand has more than 2^29 elements"]);
    bench.write("product.toml", text.replace("linear_fwd", "product"));
    run(&bench, words, "").fails(3, &["is not an op that a sheet can name"]);
}

#[test]
fn training_runs_the_kernels_of_a_folder() {
    let Some(bench) = bench() else { return };
    bench.run("init --preset qwen2-tiny --tokenizer tok --output-dir tiny --seed 7").ok();
    let train = |name: &str, steps: usize, rest: &str| {
        format!(
            "reward --model tiny --train-file groups.jsonl --device emulator --per-device-train-batch-size 1 --save-steps 1 \
             --lr-scheduler-type constant --max-steps {steps} --output-dir {name} {rest}"
        )
    };
    for folder in ["same", "other"] {
        std::fs::create_dir(bench.at(folder)).unwrap();
    }
    bench.write("same/reward.cu", shipped("reward.cu"));
    bench.write("other/reward.cu", changed("reward.cu", "score[s] = sum;", "score[s] = 2.0f * sum;"));
    run(&bench, &train("plain", 1, ""), "").ok();
    let done = run(&bench, &train("copy", 1, ""), "same").ok();
    assert!(done.err.contains("note: kernels of MAPL_KERNELS: same/reward.cu ("), "{}", done.err);
    assert!(done.out.contains("of MAPL_KERNELS: same/reward.cu ("), "{}", done.out);
    run(&bench, &train("changed", 1, ""), "other").ok();
    let weights = |run: &str| bench.bytes(&format!("{run}/model.safetensors"));
    assert!(weights("plain") == weights("copy"), "an unchanged copy computes other bits");
    assert!(weights("plain") != weights("changed"), "the changed kernel did not run");
    let kernels = |run: &str| bench.json(&format!("{run}/run.json"))["environment"]["kernels"].clone();
    let hash = kernels("copy")["same/reward.cu"].as_str().unwrap().to_owned();
    assert!(hash.len() == 12 && kernels("plain").is_null());
    assert!(kernels("changed")["other/reward.cu"].as_str().unwrap() != hash);

    // A run resumes only with the kernels that it was started with.
    let resume = train("copy", 2, "--resume-from-checkpoint true");
    run(&bench, &resume, "other").fails(6, &["cannot resume a different run", "MAPL_KERNELS"]);
    run(&bench, &resume, "").fails(6, &["MAPL_KERNELS was reward.cu"]);
    run(&bench, &resume, "same").ok();

    for (folder, code, part) in [("missing", 2, "MAPL_KERNELS"), ("tok", 2, "has no .cu file")] {
        run(&bench, &train("refused", 1, ""), folder).fails(code, &[part]);
    }
    bench.write("same/own.cu", "#include \"common.cuh\"\nKERNEL(32, of_nobody)(int n) {\n}\n");
    run(&bench, &train("refused", 1, ""), "same").fails(3, &["no launcher has the kernel of_nobody"]);
}
