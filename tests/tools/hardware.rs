//! Hardware sampler: a recorded stream of GPU readings with failures, bounded memory, a log that
//! cannot be written, and a machine without the NVML library.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use mapl::perf::hardware::gpu::{Activity, GpuMeter, GpuSensors, MAX_FAILURES, Unavailable};
use mapl::perf::hardware::host::HostMeter;
use mapl::perf::hardware::sampler::{MAX_SAMPLES, Sampler};
use mapl::perf::hardware::{Meter, Sample, nvml};

/// A GPU that plays back recorded power readings in order. After the last recorded reading every
/// power reading fails.
struct Recorded {
    power: VecDeque<Result<f64, Unavailable>>,
    asked_for_temperature: Arc<AtomicUsize>,
}

fn lost<T>() -> Result<T, Unavailable> {
    Err("the card was lost".into())
}

impl GpuSensors for Recorded {
    fn busy(&mut self) -> Result<(f64, f64), Unavailable> {
        Ok((0.75, 0.5))
    }
    fn sm_clock(&mut self) -> Result<f64, Unavailable> {
        Ok(1755.0)
    }
    fn memory_clock(&mut self) -> Result<f64, Unavailable> {
        Ok(2619.0)
    }
    fn power(&mut self) -> Result<f64, Unavailable> {
        self.power.pop_front().unwrap_or_else(lost)
    }
    fn power_limit(&mut self) -> Result<f64, Unavailable> {
        Ok(700.0)
    }
    fn energy(&mut self) -> Result<f64, Unavailable> {
        Ok(12.5)
    }
    fn temperature(&mut self) -> Result<f64, Unavailable> {
        self.asked_for_temperature.fetch_add(1, Ordering::Relaxed);
        Err("not supported".into())
    }
    fn throttle(&mut self) -> Result<Vec<String>, Unavailable> {
        Ok(vec!["sw_power_cap".into()])
    }
    fn memory(&mut self) -> Result<(u64, u64), Unavailable> {
        Ok((5 << 30, 80 << 30))
    }
    fn pcie_in(&mut self) -> Result<f64, Unavailable> {
        lost()
    }
    fn pcie_out(&mut self) -> Result<f64, Unavailable> {
        Ok(2048.0)
    }
    fn activity(&mut self) -> Result<Activity, Unavailable> {
        Ok(Activity { tensor: Some(0.9), ..Activity::default() })
    }
}

fn recorded(power: Vec<Result<f64, Unavailable>>) -> (GpuMeter<Recorded>, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    (GpuMeter::new(Recorded { power: power.into(), asked_for_temperature: asked.clone() }), asked)
}

#[test]
fn a_failed_reading_is_absent_and_may_return() {
    let (mut meter, asked) = recorded(vec![Ok(310.0), lost(), lost(), lost(), lost(), Ok(290.0)]);
    let samples: Vec<Sample> = (0..7)
        .map(|_| {
            let mut sample = Sample::default();
            meter.read(&mut sample);
            sample
        })
        .collect();
    let power: Vec<_> = samples.iter().map(|sample| sample.power_w).collect();
    assert_eq!(power, [Some(310.0), None, None, None, None, Some(290.0), None]);
    for sample in &samples {
        assert_eq!((sample.gpu_busy, sample.memory_busy, sample.sm_clock_mhz), (Some(0.75), Some(0.5), Some(1755.0)));
        assert_eq!((sample.tensor_active, sample.dram_active), (Some(0.9), None));
        assert_eq!(sample.throttle.as_deref(), Some(&["sw_power_cap".to_owned()][..]));
        assert_eq!((sample.temperature_c, sample.pcie_in_bytes_per_s), (None, None));
    }
    // A reading that never succeeds is given up after `MAX_FAILURES` attempts.
    assert_eq!(asked.load(Ordering::Relaxed), MAX_FAILURES as usize);
    let missing = meter.missing();
    let reason = |name: &str| missing.iter().find(|(n, _)| n == name).map(|(_, why)| why.as_str());
    assert_eq!(reason("power"), Some("the card was lost"));
    assert_eq!(reason("temperature"), Some("not supported"));
    assert_eq!(reason("sm_clock"), None);
}

#[test]
fn readings_are_logged_as_lines_with_null_for_absent_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hw.jsonl");
    let (seen, readings) = mpsc::channel();
    let sampler = Sampler::start(Duration::from_millis(1), Some(&path), move || {
        let (meter, _) = recorded(vec![Ok(310.0), lost(), Ok(305.0)]);
        (vec![Box::new(Counted { meter, seen }) as Box<dyn Meter>, Box::new(HostMeter::new())], Vec::new())
    })
    .unwrap();
    // Waits for five readings without a time limit.
    (0..5).for_each(|_| readings.recv().unwrap());
    let readings = sampler.stop();
    let lines = std::fs::read_to_string(&path).unwrap();
    let logged: Vec<Sample> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(logged, readings.samples);
    assert!(logged.len() >= 5);
    assert!(lines.lines().nth(1).unwrap().contains("\"power_w\":null"), "{lines}");
    assert!(logged.windows(2).all(|pair| pair[0].time_s < pair[1].time_s));
    assert!(readings.missing.iter().any(|(name, why)| name == "power" && why == "the card was lost"));
}

/// Meter that sends a message on every reading.
struct Counted<M> {
    meter: M,
    seen: mpsc::Sender<()>,
}

impl<M: Meter> Meter for Counted<M> {
    fn read(&mut self, sample: &mut Sample) {
        self.meter.read(sample);
        let _ = self.seen.send(());
    }
    fn missing(&self) -> Vec<(String, String)> {
        self.meter.missing()
    }
}

#[test]
fn a_long_run_uses_bounded_memory() {
    struct Instantly(mpsc::Sender<()>, usize);
    impl Meter for Instantly {
        fn read(&mut self, sample: &mut Sample) {
            self.1 += 1;
            sample.power_w = Some(self.1 as f64);
            if self.1 == 200 {
                let _ = self.0.send(());
            }
        }
        fn missing(&self) -> Vec<(String, String)> {
            Vec::new()
        }
    }
    let (done, wait) = mpsc::channel();
    let meters = move || (vec![Box::new(Instantly(done, 0)) as Box<dyn Meter>], Vec::new());
    let sampler = Sampler::start(Duration::ZERO, None, meters).unwrap();
    wait.recv().unwrap();
    let readings = sampler.stop();
    assert!(readings.samples.len() >= 200 && readings.samples.len() <= MAX_SAMPLES + 1);
    assert_eq!(readings.samples[0].power_w, Some(1.0));
}

#[test]
fn a_log_that_cannot_be_created_is_an_error_before_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("no such folder/hw.jsonl");
    let error = Sampler::start(Duration::from_millis(1), Some(&path), || (Vec::new(), Vec::new())).err().unwrap();
    assert!(error.to_string().contains("no such folder"), "{error}");
}

/// A missing library is reported in one line. With the library, each reading is present or missing
/// with a reason.
#[test]
fn nvml_is_present_or_reports_why_not() {
    match nvml::load() {
        Err(why) => assert!(why.contains("NVML") && !why.contains('\n'), "{why}"),
        Ok(library) => match nvml::NvmlGpu::new(&library, None) {
            Err(why) => assert!(!why.is_empty()),
            Ok(card) => {
                let mut meter = GpuMeter::new(card);
                let mut sample = Sample::default();
                meter.read(&mut sample);
                assert!(sample.gpu_memory_total_bytes.is_some() || !meter.missing().is_empty());
            }
        },
    }
}
