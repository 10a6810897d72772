//! Tests of kernel inspection on the emulator: access counts, compared with counts by hand, and the ladders
//! of `benches/ladder`.

use std::path::Path;
use std::process::Command;

use mapl::backend::kernels::emulator::Emulator;

use crate::workbench::{Bench, Done};

/// A bench with a separate cache of compiled kernels, or `None` in a build without the emulator.
fn bench() -> Option<Bench> {
    if let Err(why) = Emulator::new() {
        assert!(std::env::var_os("MAPL_REQUIRE_EMULATOR").is_none_or(|v| v != "1"), "{why}");
        println!("SKIPPED: {why}");
        return None;
    }
    Some(Bench::new())
}

/// Runs a command in an environment without nvcc.
fn run(bench: &Bench, words: &str) -> Done {
    let mut command: Command = bench.command(words);
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "MAPL_KERNELS"] {
        command.env_remove(variable);
    }
    command.env("MAPL_CACHE_DIR", bench.at("cache"));
    bench.finish(command, words)
}

/// Copies the kernel file with accesses that are counted by hand.
fn fixture(bench: &Bench) {
    for name in ["accesses.cu", "accesses.toml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        bench.write(name, std::fs::read(path).unwrap());
    }
}

/// The lines about a kernel: its totals in shared and in global memory.
fn totals(text: &str, kernel: &str) -> Vec<String> {
    let mut lines = text.lines().skip_while(|line| *line != format!("  {kernel} (1 launch)")).skip(1);
    let mut found = Vec::new();
    for line in lines.by_ref().take_while(|line| line.starts_with("    ")) {
        if let Some(total) = line.strip_prefix("    ").filter(|line| !line.starts_with(' ')) {
            found.push(total.to_owned());
        }
    }
    found
}

#[test]
fn counted_accesses_equal_those_counted_by_hand() {
    let Some(bench) = bench() else { return };
    fixture(&bench);
    let done = run(&bench, "bench --device emulator --kernel accesses.cu --count-accesses --repeats 1").ok();
    let shared = |kernel: &str, accesses: u64, passes: u64, conflicts: u64| {
        let line = format!("shared  {accesses} accesses, {passes} passes, {conflicts} bank conflicts");
        assert_eq!(totals(&done.out, kernel).first(), Some(&line), "{kernel}\n{}", done.out);
    };
    // A warp accesses 32 words with strides 1, 2, 32, 33 and 0: one in each bank; two in every second bank;
    // all in one bank; one in each bank again; a broadcast of one word.
    shared("words_1", 1, 1, 0);
    shared("words_2", 1, 2, 1);
    shared("words_32", 1, 32, 31);
    shared("words_33", 1, 1, 0);
    shared("words_0", 1, 1, 0);
    // Half warps access 8 bytes in each of 16 lanes. Adjacent accesses fill all 32 banks. At a distance of 16
    // bytes, lanes conflict in pairs; at 128 bytes, all 16 lanes share two banks.
    shared("pairs_1", 1, 2, 0);
    shared("pairs_2", 1, 4, 2);
    shared("pairs_16", 1, 32, 30);
    // Quarter warps access 8 rows of 4 banks, once by cp.async and once by ldmatrix. Dense rows use all 32
    // banks. With rows of 64 bytes, four share banks; with 128 bytes, all eight; with 144 bytes, none.
    shared("rows_1", 2, 8, 0);
    shared("rows_4", 2, 32, 24);
    shared("rows_8", 2, 64, 56);
    shared("rows_9", 2, 8, 0);
    // The three loop iterations are three accesses, the last one by 16 lanes.
    shared("halves", 3, 3, 0);
    let global = |kernel: &str, sectors: u64, fewest: u64| {
        let uncoalesced = u64::from(sectors > fewest);
        let line = format!(
            "global  1 accesses, {sectors} sectors ({} bytes), fewest {fewest}, {uncoalesced} accesses uncoalesced",
            32 * sectors
        );
        assert_eq!(totals(&done.out, kernel).last(), Some(&line), "{kernel}\n{}", done.out);
    };
    // 128 aligned bytes are in four sectors; shifted by one element, they touch five. A single element is in
    // one sector, and 32 elements at a distance of 32 bytes are in 32 sectors.
    global("elements_0_1", 4, 4);
    global("elements_1_1", 5, 4);
    global("elements_0_0", 1, 1);
    global("elements_1_8", 32, 4);
    // 16 bytes per lane are 512 bytes in 16 sectors.
    global("rows_8", 16, 16);
    assert!(done.out.contains("accesses.cu:15 store of 4 bytes, shared: 1 accesses, 32 passes"), "{}", done.out);

    // Without `--count-accesses`, nothing is counted, and only the emulator supports the flag.
    let done = run(&bench, "bench --device emulator --kernel accesses.cu --repeats 1").ok();
    assert!(!done.out.contains("passes"), "{}", done.out);
    run(&bench, "bench --device cpu --op norm_fwd --count-accesses").fails(2, &["only the emulator counts accesses"]);
}

#[test]
fn accesses_of_shipped_kernels_are_counted() {
    let Some(bench) = bench() else { return };
    let done = run(&bench, "bench --device emulator --op linear_fwd --shape o --count-accesses --repeats 1").ok();
    // ldmatrix and cp.async have no bank conflicts on the swizzled tiles.
    let text = totals(&done.out, "linear_fwd_bf16").join("\n");
    assert!(text.contains("passes, 0 bank conflicts") && text.contains("sectors"), "{}", done.out);
}

/// Rungs of a ladder: name, error, passes, conflicts and accesses beyond the fewest sectors.
fn rungs(text: &str, ladder: &str) -> Vec<(String, f64, u64, u64, f64)> {
    let number = |line: &str, from: usize, to: usize| line.get(from..to).unwrap_or("").trim().to_owned();
    let rows = text.lines().filter(|line| line.starts_with(&format!("{ladder}_")));
    rows.map(|line| {
        let of = |from, to| number(line, from, to);
        (
            of(0, 26),
            of(61, 68).parse().unwrap(),
            of(87, 97).parse().unwrap(),
            of(97, 107).parse().unwrap(),
            of(79, 87).parse().unwrap(),
        )
    })
    .collect()
}

/// Asserts that the page of a ladder shows the figures that the command prints.
fn page_agrees(text: &str, ladder: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/ladder").join(format!("{ladder}.md"));
    let page = std::fs::read_to_string(path).unwrap();
    for line in text.lines().filter(|line| line.starts_with(&format!("{ladder}_"))) {
        let of = |from: usize, to: usize| line[from..to].trim();
        let [global, least, passes, conflicts, floor] = [of(69, 79), of(79, 87), of(87, 97), of(97, 107), of(107, 118)];
        let row = format!("| `{}` | {global} | {least} | {passes} | {conflicts} | {floor} |", of(0, 26));
        assert!(page.contains(&row), "benches/ladder/{ladder}.md does not have {row}");
    }
}

#[test]
fn every_rung_of_the_product_is_right_and_shows_its_idea() {
    let Some(bench) = bench() else { return };
    let done = run(&bench, "bench --ladder product --device emulator").ok();
    page_agrees(&done.out, "product");
    let rungs = rungs(&done.out, "product");
    assert_eq!(rungs.len(), 8, "{}", done.out);
    assert!(rungs.iter().all(|(_, error, ..)| *error <= 1.0), "{}", done.out);
    let conflicts: Vec<u64> = rungs.iter().map(|rung| rung.3).collect();
    // Rungs 3 and 4 read down the columns of their tiles; the swizzle of rung 5 ends the conflicts.
    assert!(conflicts[2] > 0 && conflicts[3] > 0 && conflicts[4..7] == [0, 0, 0], "{}", done.out);
    // Each lane of rung 1 reads a different row.
    assert!(rungs[0].4 > 8.0 && rungs[1].4 < 1.1, "{}", done.out);
    assert!(done.out.contains("2887"), "the recorded time of the shipped kernel: {}", done.out);
}

#[test]
fn every_rung_of_the_head_is_right_and_shows_its_idea() {
    let Some(bench) = bench() else { return };
    let done = run(&bench, "bench --ladder head --device emulator").ok();
    page_agrees(&done.out, "head");
    let rungs = rungs(&done.out, "head");
    assert_eq!(rungs.len(), 7, "{}", done.out);
    assert!(rungs.iter().all(|(_, error, ..)| *error <= 1.0), "{}", done.out);
    assert!(done.out.contains("2731"), "the recorded time of the shipped kernel: {}", done.out);
    run(&bench, "bench --ladder stairs").fails(2, &["one of product, head"]);
}

#[test]
fn the_tuner_is_rehearsed_on_the_emulator_and_its_file_is_used_or_named() {
    let Some(bench) = bench() else { return };
    let done = run(&bench, "bench --tune --device emulator --tune-output tiles.json").ok();
    for part in ["fitted", "built in", "128x256 cooperative", "times, error", "stored in"] {
        assert!(done.out.contains(part), "{part:?} is not in {}", done.out);
    }
    assert!(done.err.contains("emulator times say nothing"), "{}", done.err);
    let env = |value: &str| {
        let mut command = bench.command("env");
        command.env("MAPL_CACHE_DIR", bench.at("cache")).env("MAPL_TILES", value);
        bench.finish(command, "env").ok().out
    };
    let file = bench.at("tiles.json").display().to_string();
    assert!(env(&file).contains(&format!("kernel emulator: {file}, fitted to ")), "{}", env(&file));
    assert!(env("0").contains("kernel emulator: built in, fitted on an H200"), "{}", env("0"));
    // A file fitted on a different GPU and a damaged one are named and ignored; the run continues.
    let text = String::from_utf8(bench.bytes("tiles.json")).unwrap();
    for (text, why) in [
        (text.replace("kernel emulator", "NVIDIA H200"), "was fitted on NVIDIA H200, not on kernel emulator"),
        (text[..40].to_owned(), "is not a file of --tune"),
    ] {
        bench.write("tiles.json", text);
        assert!(env(&file).contains(&format!("built in, since {file} {why}")), "{}", env(&file));
        let mut command = bench.command("bench --device emulator --op norm_fwd --repeats 1");
        command.env("MAPL_TILES", &file);
        let done = bench.finish(command, "bench").ok();
        assert!(done.err.contains(why) && done.err.contains("it is ignored"), "{}", done.err);
    }
    run(&bench, "bench --tune --device cpu").fails(2, &["--tune runs on one device"]);
    let mut command = bench.command("bench --tune");
    command.env("CUDA_VISIBLE_DEVICES", "-1");
    bench.finish(command, "bench").fails(5, &["--tune: ", "use --device emulator"]);
}

#[test]
fn a_missing_wait_shows_in_another_order_of_copies() {
    let Some(bench) = bench() else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/ladder/product");
    let rung = std::fs::read_to_string(path.join("product_7_pipeline.cu")).unwrap();
    let wait = "cp_async_wait<STAGES - 2>()";
    assert!(rung.contains(wait));
    bench.write("product_7_pipeline.cu", rung.replace(wait, "cp_async_wait<STAGES - 1>()"));
    bench.write("product_7_pipeline.toml", std::fs::read(path.join("product_7_pipeline.toml")).unwrap());
    let words = "bench --device emulator --kernel product_7_pipeline.cu --repeats 1";
    run(&bench, words).fails(1, &["in a different order of threads and copies: y is wrong"]);
}
