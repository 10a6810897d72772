//! Inverse frequencies of RoPE and the factor on its cosines and sines, for every scaling.
//!
//! ```text
//! plain[i] = theta^(-2i / head_dim)
//! default, dynamic: plain        linear: plain / factor        longrope: plain / short[i]
//! llama3: plain, plain / factor, or a blend of both by wavelength
//! yarn:   (1 - r) plain + r plain / factor, with a ramp r over i
//! ```

use super::rope::{LongRope, RopeConfig, RopeScaling, Yarn};

impl RopeConfig {
    /// Inverse frequencies, `head_dim / 2` of them, in radians per position. Every operation is
    /// rounded to f32 in the order of transformers, because at long positions the last bit of a
    /// frequency is visible in the angle.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        // The power is computed in f64 and rounded once, which avoids the last-bit error of an f32 power.
        let powers = (0..head_dim / 2).map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            f64::from(self.theta as f32).powf(f64::from(exponent)) as f32
        });
        let plain = powers.clone().map(|power| 1.0 / power);
        match &self.scaling {
            RopeScaling::Default | RopeScaling::Dynamic { .. } => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / *factor as f32).collect(),
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                let old_length = original_max_position as f64;
                let longest_kept = (old_length / high_freq_factor) as f32;
                let shortest_scaled = (old_length / low_freq_factor) as f32;
                let factor = factor as f32;
                plain
                    .map(|f| {
                        let wavelength = std::f64::consts::TAU as f32 / f;
                        if wavelength > shortest_scaled {
                            f / factor
                        } else if wavelength < longest_kept {
                            f
                        } else {
                            let smooth = (old_length as f32 / wavelength - low_freq_factor as f32)
                                / (high_freq_factor - low_freq_factor) as f32;
                            (1.0 - smooth) * f / factor + smooth * f
                        }
                    })
                    .collect()
            }
            RopeScaling::Yarn(yarn) => {
                let (low, high) = yarn.ramp(self.theta, head_dim);
                let width = (high - low) as f32;
                let factor = yarn.factor as f32;
                powers
                    .enumerate()
                    .map(|(i, power)| {
                        let ramp = ((i as f32 - low as f32) / width).clamp(0.0, 1.0);
                        let kept = 1.0 - ramp;
                        1.0 / (factor * power) * (1.0 - kept) + 1.0 / power * kept
                    })
                    .collect()
            }
            RopeScaling::LongRope(long) => {
                powers.zip(&long.short).map(|(power, divisor)| 1.0 / (*divisor as f32 * power)).collect()
            }
        }
    }

    /// Factor on cosines and sines, so its square is a factor on attention scores.
    pub fn attention_factor(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor(),
            RopeScaling::LongRope(long) => long.attention_factor(),
            _ => 1.0,
        }
    }
}

impl Yarn {
    /// Indices of the pairs between which the ramp rises from 0 to 1.
    fn ramp(&self, theta: f64, head_dim: usize) -> (f64, f64) {
        // Index of the pair that makes `rotations` turns over the original length.
        let pair = |rotations: f64| {
            let positions = self.original_max_position as f64 / (rotations * std::f64::consts::TAU);
            head_dim as f64 * positions.ln() / (2.0 * theta.ln())
        };
        let (fast, slow) = self.betas();
        let (low, high) = match self.truncate {
            true => (pair(fast).floor(), pair(slow).ceil()),
            false => (pair(fast), pair(slow)),
        };
        let (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
        // A ramp without width would divide by zero.
        (low, if low == high { high + 0.001 } else { high })
    }

    fn attention_factor(&self) -> f64 {
        let scale = |mscale: f64| if self.factor <= 1.0 { 1.0 } else { 0.1 * mscale * self.factor.ln() + 1.0 };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(factor), ..) => factor,
            (None, Some(mscale), Some(all)) => scale(mscale) / scale(all),
            _ => scale(1.0),
        }
    }
}

impl LongRope {
    fn attention_factor(&self) -> f64 {
        let original = self.original_max_position as f64;
        let factor = self.factor.unwrap_or(self.max_position as f64 / original);
        match self.attention_factor {
            Some(factor) => factor,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let plain = RopeConfig { theta: 500_000.0, scaling: RopeScaling::Default };
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 8192,
        };
        let scaled = RopeConfig { theta: 500_000.0, scaling };
        let (a, b) = (plain.inv_freq(64), scaled.inv_freq(64));
        assert_eq!(a[0], 1.0);
        assert_eq!(a[0], b[0]);
        assert_eq!(a[31] / 32.0, b[31]);
        // For wavelengths from 2048 to 8192, the scaled frequency is strictly between a plain frequency and 1 /
        // 32 of it.
        let blended = (0..32).filter(|&i| b[i] < a[i] && b[i] > a[i] / 32.0).count();
        assert_eq!(blended, a.iter().filter(|f| (2048.0..8192.0).contains(&(std::f32::consts::TAU / **f))).count());
        assert!(blended > 0);
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = RopeConfig { theta: 10_000.0, scaling: RopeScaling::Default }.inv_freq(16);
        let scaled = RopeConfig { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } }.inv_freq(16);
        assert!(plain.iter().zip(&scaled).all(|(a, b)| a / 4.0 == *b));
        assert_eq!(plain.len(), 8);
    }
}
