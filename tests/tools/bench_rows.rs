//! Benchmark rows: bytes and FLOPs against hand-computed values, verdicts of comparisons, rejected files, and
//! every record in `benches/record/`.

use std::path::{Path, PathBuf};

use mapl::backend::contract::*;
use mapl::bench::compare::{Verdict, compare, text};
use mapl::bench::row::{Cache, Row, SCHEMA, Status, read, write};
use mapl::bench::run::{cost, needs_more_samples};
use mapl::bench::work::Work;
use mapl::bench::work::attention::{Attention, Shape};
use mapl::bench::work::linear::{Linear, Pass};
use mapl::bench::work::norm::Norm;

#[test]
fn bytes_and_flops_match_values_computed_by_hand() {
    // 8192 tokens through the projection of Qwen2.5-0.5B from 896 to 1152 with a bias, in bf16: x
    // 8192*896*2 = 14,680,064, weight 1152*896*2 = 2,064,384, y 8192*1152*2 = 18,874,368 bytes; the
    // contract does not count the bias (2,304 bytes).
    let dims = LinearDims { tokens: 8192, inputs: 896, outputs: 1152 };
    let linear = cost(&Work::from(Linear { pass: Pass::Bias, dims }), Precision::Bf16).unwrap();
    assert_eq!(linear, Cost { bytes: 35_618_816, flops: 16_911_433_728 });

    // RMSNorm of a sum in f32, 2048 rows of 4096: x, residual, sum and y of 33,554,432 bytes each,
    // rstd 8,192; five FLOPs per element: 41,943,040.
    let norm = Norm { backward: false, dims: NormDims { tokens: 2048, hidden: 4096, eps: 1e-6, offset: 0.0 } };
    let norm = cost(&Work::from(norm), Precision::F32).unwrap();
    assert_eq!(norm, Cost { bytes: 134_225_920, flops: 41_943_040 });

    // Attention of 4 pairs, prompt 512 and two responses of 256, 14 heads of 64 over 2 key and
    // value heads, bf16. A tree sees 512*513/2 + 2*(256*512 + 256*257/2) = 131,328 + 2*163,968 =
    // 459,264 pairs; 4 FLOPs per pair, head and channel: 4 * 459,264 * 14 * 64 * 4 = 6,584,008,704.
    // Queries and results are 4096*14*64, keys and values 4096*2*64 elements each: (2*3,670,016 +
    // 2*524,288)*2 = 16,777,216 bytes, and 14*4096*4 = 229,376 for the logsumexps.
    let shape = Shape::Pair { prompt: 512, response: 256 };
    let attention = Attention { backward: false, shape, trees: 4, heads: 14, kv_heads: 2, head_dim: 64 };
    let attention = cost(&Work::from(attention), Precision::Bf16).unwrap();
    assert_eq!(attention, Cost { bytes: 17_006_592, flops: 6_584_008_704 });
}

/// A row with the given times in microseconds.
fn row(op: &str, median: f64, p20: f64, p80: f64, least: f64) -> Row {
    Row {
        schema: SCHEMA,
        date: "2026-01-31".into(),
        commit: "abcdef0".into(),
        device: "a processor".into(),
        backend: "cpu".into(),
        variant: "mapl".into(),
        dtype: "f32".into(),
        op: op.into(),
        model: "tiny".into(),
        layer: "qkv".into(),
        shape: "tokens=1 inputs=2".into(),
        cache: Some(Cache::Cold),
        status: Status::Measured,
        samples: Some(9),
        calls: Some(2),
        median_us: Some(median),
        p20_us: Some(p20),
        p80_us: Some(p80),
        least_us: Some(least),
        paced_median: None,
        paced_p20: None,
        paced_p80: None,
        bytes: Some(10),
        flops: Some(20),
        gb_per_s: Some(1.5),
        tflop_per_s: Some(0.25),
        bound: Some("memory".into()),
        memory_gb_per_s: Some(3.0),
        product_tflop_per_s: Some(0.5),
        share: Some(0.5),
        predicted_us: None,
        energy_mj: None,
        others: Some(0.02),
        error_share: Some(0.125),
        note: String::new(),
    }
}

/// Adds times in units of the yardstick to a row.
fn paced(row: Row, median: f64, p20: f64, p80: f64) -> Row {
    Row { paced_median: Some(median), paced_p20: Some(p20), paced_p80: Some(p80), ..row }
}

#[test]
fn verdicts_account_for_noise() {
    let earlier = [
        row("steady", 100.0, 98.0, 103.0, 97.0),
        row("slowed", 100.0, 98.0, 103.0, 97.0),
        row("faster", 100.0, 98.0, 103.0, 97.0),
        row("disturbed", 100.0, 98.0, 103.0, 97.0),
        row("restless", 100.0, 80.0, 150.0, 70.0),
        // The relative spreads, (p80 - p20) / median, of the earlier and the new row add up to 0.6.
        row("wide", 100.0, 90.0, 120.0, 85.0),
        row("within the threshold", 100.0, 90.0, 120.0, 85.0),
        row("loaded", 100.0, 98.0, 103.0, 97.0),
        // Relative to the yardstick, the new "slow machine" row is about as fast as the earlier one although
        // it takes twice as long; the new "fast machine" row is slower although it takes equally long.
        paced(row("slow machine", 100.0, 95.0, 110.0, 90.0), 4.0, 3.9, 4.2),
        paced(row("fast machine", 100.0, 95.0, 110.0, 90.0), 4.0, 3.8, 4.2),
        row("gone", 1.0, 1.0, 1.0, 1.0),
        Row { status: Status::Skipped, median_us: None, note: "why".into(), ..row("skipped", 1.0, 1.0, 1.0, 1.0) },
    ];
    let new = [
        row("steady", 104.0, 102.0, 106.0, 99.0),
        row("slowed", 130.0, 127.0, 134.0, 125.0),
        row("faster", 60.0, 59.0, 62.0, 58.0),
        // Other load on the machine: most samples are longer, the shortest is about unchanged.
        row("disturbed", 150.0, 130.0, 170.0, 97.5),
        row("restless", 160.0, 110.0, 190.0, 90.0),
        row("wide", 150.0, 135.0, 180.0, 127.0),
        row("within the threshold", 150.0, 135.0, 180.0, 125.0),
        Row { others: Some(1.4), ..row("loaded", 300.0, 290.0, 310.0, 280.0) },
        paced(row("slow machine", 200.0, 190.0, 210.0, 180.0), 4.1, 3.9, 4.3),
        paced(row("fast machine", 100.0, 95.0, 110.0, 90.0), 6.0, 5.7, 6.3),
        row("new", 1.0, 1.0, 1.0, 1.0),
        row("skipped", 1.0, 1.0, 1.0, 1.0),
    ];
    let pairs = compare(&new, &earlier, 0.05);
    let verdict = |op: &str| pairs.iter().find(|pair| pair.op == op).unwrap().verdict;
    let expected = [
        ("steady", Verdict::Same),
        ("slowed", Verdict::Slower),
        ("faster", Verdict::Faster),
        ("disturbed", Verdict::Same),
        ("restless", Verdict::Same),
        ("wide", Verdict::Slower),
        ("within the threshold", Verdict::Same),
        ("loaded", Verdict::Disturbed),
        ("slow machine", Verdict::Same),
        ("fast machine", Verdict::Slower),
        ("new", Verdict::New),
        ("gone", Verdict::Gone),
        ("skipped", Verdict::Unknown),
    ];
    for (op, expected) in expected {
        assert_eq!(verdict(op), expected, "{op}");
    }
    assert_eq!(pairs.len(), expected.len());
    // The row "wide" exceeds its threshold ratio, and "within the threshold" stays below it.
    let edge = |op: &str| pairs.iter().find(|pair| pair.op == op).and_then(|p| p.noise.zip(p.ratio)).unwrap();
    assert!(edge("wide").0 < edge("wide").1 && edge("within the threshold").0 > edge("within the threshold").1);
    assert!((edge("faster").0 - 1.05 * (62.0 / 60.0) / (97.0 / 100.0)).abs() < 1e-12, "{:?}", edge("faster"));
    let text = text(&pairs);
    assert!(
        text.contains("slower   1.300x the earlier median") && text.contains("3 slower, 1 faster, 5 within"),
        "{text}"
    );
}

/// Rows are timed again if they differ from the record or were disturbed by other load. Equal rows
/// and rows without a record are not timed again.
#[test]
fn differing_and_disturbed_rows_get_further_samples() {
    let earlier = [row("op", 100.0, 98.0, 103.0, 97.0)];
    let needs_more_samples = |row: &Row| needs_more_samples(std::slice::from_ref(row), Some((&earlier, 0.05)));
    let loaded = Row { others: Some(0.2), ..row("op", 100.0, 98.0, 103.0, 97.0) };
    assert!(
        needs_more_samples(&row("op", 130.0, 127.0, 134.0, 125.0))
            && needs_more_samples(&row("op", 60.0, 59.0, 62.0, 58.0))
    );
    assert!(
        needs_more_samples(&loaded)
            && !needs_more_samples(&earlier[0])
            && !needs_more_samples(&row("other", 9.0, 9.0, 9.0, 9.0))
    );
    assert!(!mapl::bench::run::needs_more_samples(&[loaded], None));
}

#[test]
fn rows_of_different_dtypes_are_not_compared() {
    let one = row("op", 1.0, 1.0, 1.0, 1.0);
    let other = Row { dtype: "bf16".into(), ..one.clone() };
    let verdicts: Vec<_> = compare(&[one], &[other], 0.05).into_iter().map(|pair| pair.verdict).collect();
    assert_eq!(verdicts, [Verdict::New, Verdict::Gone]);
}

#[test]
fn written_files_are_read_back_and_errors_name_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let absent = Row {
        status: Status::Absent,
        median_us: None,
        p20_us: None,
        p80_us: None,
        least_us: None,
        cache: None,
        note: "no library, \"quoted\"".into(),
        ..row("b", 1.0, 1.0, 1.0, 1.0)
    };
    let rows = [row("a", 2.0, 1.0, 3.0, 0.5), absent];
    for name in ["deep/rows.csv", "rows.json"] {
        let path = folder.path().join(name);
        write(&path, &rows).unwrap();
        assert_eq!(read(&path).unwrap(), rows);
    }
    let good = std::fs::read_to_string(folder.path().join("deep/rows.csv")).unwrap();
    let uneven = Row { paced_p80: Some(0.5), ..paced(row("c", 1.0, 1.0, 1.0, 1.0), 1.0, 1.0, 1.0) };
    assert!(uneven.check().unwrap_err().contains("paced times are not in order"));
    let broken = [
        (good.replace("2026-01-31", "yesterday"), 2, "a day such as 2026-01-31"),
        (good.replace(",2.0,1.0,3.0,0.5,", ",2.0,2.5,3.0,0.5,"), 2, "times are not in order"),
        (good.replace("2.0,1.0", "fast,1.0"), 2, "invalid float"),
        (good.replace("\"no library, \"\"quoted\"\"\"", ""), 3, "does not say why"),
        (good.replacen("1,2026", "9,2026", 1), 2, "schema 9"),
        (good.replace("variant", "contender"), 2, "benches/README.md"),
    ];
    for (text, line, why) in broken {
        assert_ne!(text, good);
        let path = folder.path().join("broken.csv");
        std::fs::write(&path, text).unwrap();
        let error = read(&path).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("broken.csv:{line}")) && text.contains(why), "{text}");
        assert_eq!(error.exit_code(), 3);
    }
}

/// All files below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { below(&path) } else { vec![path] }).collect()
}

#[test]
fn every_record_is_valid_and_its_columns_are_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches");
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let records: Vec<PathBuf> =
        below(&root.join("record")).into_iter().filter(|path| path.extension().is_some_and(|e| e == "csv")).collect();
    assert!(!records.is_empty(), "benches/record holds no record");
    for path in &records {
        let rows = read(path).unwrap();
        assert!(!rows.is_empty(), "{}", path.display());
        // The name `<device>/<date>-<commit>.csv` must match the rows.
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(name.starts_with(&rows[0].date), "{}: rows of {}", path.display(), rows[0].date);
        assert!(rows.iter().all(|row| name.contains(row.commit.trim_end_matches('+'))), "{}", path.display());
        let over = rows.iter().find(|row| row.share.is_some_and(|share| share > 1.05));
        assert!(over.is_none(), "{}: above its ceiling: {over:?}", path.display());
    }
    let header = std::fs::read_to_string(&records[0]).unwrap().lines().next().unwrap().to_owned();
    for column in header.split(',') {
        assert!(readme.contains(&format!("`{column}`")), "benches/README.md does not describe {column}");
    }
}
