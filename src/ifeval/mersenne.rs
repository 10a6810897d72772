//! Python's `random.Random` for one seed: the Mersenne Twister MT19937 (Matsumoto and Nishimura
//! 1998) and the draws that language detection makes. The sequences are those of Python.

const SIZE: usize = 624;
const SHIFT: usize = 397;

/// State of the generator.
pub(super) struct Random {
    state: [u32; SIZE],
    next: usize,
    /// Second value of the last pair of normal draws, if it has not been returned yet.
    spare: Option<f64>,
}

impl Random {
    /// `random.Random(seed)` for a seed of at most 32 bits.
    pub(super) fn new(seed: u32) -> Self {
        let mut state = [0; SIZE];
        state[0] = 19_650_218;
        for i in 1..SIZE {
            state[i] = mixed(state[i - 1]).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        let mut i = 1;
        for _ in 0..SIZE {
            state[i] = (state[i] ^ mixed(state[i - 1]).wrapping_mul(1_664_525)).wrapping_add(seed);
            i = following(i, &mut state);
        }
        for _ in 1..SIZE {
            state[i] = (state[i] ^ mixed(state[i - 1]).wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i = following(i, &mut state);
        }
        state[0] = 1 << 31;
        Self { state, next: SIZE, spare: None }
    }

    fn bits32(&mut self) -> u32 {
        if self.next == SIZE {
            for i in 0..SIZE {
                let y = (self.state[i] & (1 << 31)) | (self.state[(i + 1) % SIZE] & !(1 << 31));
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + SHIFT) % SIZE] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Uniform in [0, 1) with 53 bits.
    fn uniform(&mut self) -> f64 {
        let (high, low) = (self.bits32() >> 5, self.bits32() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// Standard normal (Box and Muller 1958).
    pub(super) fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let angle = self.uniform() * std::f64::consts::TAU;
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        self.spare = Some(angle.sin() * radius);
        angle.cos() * radius
    }

    /// Uniform below `n`, which is from 1 to 2^31.
    pub(super) fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = (self.bits32() >> (32 - bits)) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }
}

fn mixed(x: u32) -> u32 {
    x ^ (x >> 30)
}

fn following(i: usize, state: &mut [u32; SIZE]) -> usize {
    if i + 1 < SIZE {
        return i + 1;
    }
    state[0] = state[SIZE - 1];
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values are from CPython 3.11 with `random.Random(0)`.
    #[test]
    fn draws_are_those_of_python() {
        let mut random = Random::new(0);
        assert_eq!(random.uniform(), 0.844_421_851_525_048_1);
        assert_eq!(random.uniform(), 0.757_954_402_940_302_5);
        let mut random = Random::new(0);
        let drawn: Vec<usize> = (0..6).map(|_| random.below(1000)).collect();
        assert_eq!(drawn, [864, 394, 776, 911, 430, 41]);
        let mut random = Random::new(0);
        let drawn = [random.normal(), random.normal(), random.normal()];
        let expected = [0.941_715_4, -1.396_578_2, -0.679_714_5];
        assert!(drawn.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{drawn:?}");
    }
}
