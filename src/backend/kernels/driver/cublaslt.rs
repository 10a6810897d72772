//! Matrix products by NVIDIA's cuBLASLt, which nothing but benchmarks calls: the rate that this project's products are held
//! against. The library is loaded when it is asked for; where it is missing, so is the comparison.
//!
//! Matrices here are row-major. cuBLASLt's are column-major, so every one of ours is the transpose of its own, and
//! `C = A B` becomes `Cᵀ = Bᵀ Aᵀ`.

use std::ffi::c_void;
use std::ptr::null;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use super::{Driver, Memory};
use crate::backend::contract::Precision;
use crate::backend::kernels::device::Device as _;
use crate::{Error, Result};

/// Bytes of memory that an algorithm may use: what NVIDIA recommends for Hopper (cuBLAS, cublasSetWorkspace).
const WORKSPACE: usize = 32 << 20;
/// Algorithms that are tried out for each product.
const CANDIDATES: usize = 16;

/// How the operands of a product lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// (m, k) times the transpose of (n, k).
    Nt,
    /// (m, k) times (k, n).
    Nn,
    /// The transpose of (k, m) times (k, n).
    Tn,
}

/// A product `C = A B (+ bias) (+ residual)` with `C` of (m, n).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    pub layout: Layout,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Storage of the operands.
    pub operands: Precision,
    /// Whether the result is f32 whatever the operands are.
    pub wide: bool,
    /// A bias of (n) is added.
    pub bias: bool,
    /// A matrix like the result is added.
    pub residual: bool,
}

/// Device addresses of a call; 0 for what the product does not take.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub bias: u64,
    pub residual: u64,
}

/// What the library said about a call.
fn failed(call: &'static str) -> impl Fn(CublasError) -> Error {
    move |e| Error::Device(format!("{call}: {:?}", e.0))
}

/// The library on a device.
pub struct CublasLt<'d> {
    driver: &'d Driver,
    handle: sys::cublasLtHandle_t,
    workspace: Memory,
}

impl Drop for CublasLt<'_> {
    fn drop(&mut self) {
        let _ = self.driver.synchronize();
        // SAFETY: the handle was made by this value and is used no more.
        unsafe {
            let _ = result::destroy_handle(self.handle);
        }
    }
}

/// Descriptions of a product for the library.
struct Described {
    product: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
}

impl Drop for Described {
    fn drop(&mut self) {
        // SAFETY: each was made by this value, or is null, which the library takes for nothing.
        unsafe {
            for layout in [self.a, self.b, self.c] {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.product);
        }
    }
}

/// A product with its algorithm.
pub struct Product<'l, 'd> {
    library: &'l CublasLt<'d>,
    spec: Spec,
    described: Described,
    algorithms: Vec<sys::cublasLtMatmulAlgo_t>,
    chosen: usize,
}

impl<'d> CublasLt<'d> {
    /// [`Error::Device`] in one sentence where the library is missing.
    pub fn new(driver: &'d Driver) -> Result<Self> {
        // SAFETY: loading a library runs its initialisers; cuBLASLt's are made for it.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Device(
                "the library (libcublasLt) cannot be loaded; put its folder into LD_LIBRARY_PATH".into(),
            ));
        }
        driver.current()?;
        let workspace = driver.allocate(WORKSPACE)?;
        Ok(Self { driver, handle: result::create_handle().map_err(failed("cublasLtCreate"))?, workspace })
    }

    /// `cuBLASLt 13.0.0`.
    pub fn name(&self) -> String {
        // SAFETY: the library is loaded.
        let version = unsafe { sys::cublasLtGetVersion() };
        format!("cuBLASLt {}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }

    /// A product with the algorithms that the library proposes for it, the first one chosen.
    pub fn product<'l>(&'l self, spec: Spec) -> Result<Product<'l, 'd>> {
        self.driver.current()?;
        let described = describe(&spec)?;
        let preference = result::create_matmul_pref().map_err(failed("cublasLtMatmulPreferenceCreate"))?;
        let room = WORKSPACE as u64;
        // SAFETY: numbers, an array of numbers, and a status of which 0 is one.
        let none: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        let mut proposals = vec![none; CANDIDATES];
        let mut found = 0;
        // SAFETY: all descriptions are alive; the list has room for as many proposals as are asked for.
        let proposed = unsafe {
            let which = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let set = result::set_matmul_pref_attribute(preference, which, (&raw const room).cast(), size_of::<u64>());
            let proposed = set.and_then(|()| {
                sys::cublasLtMatmulAlgoGetHeuristic(
                    self.handle,
                    described.product,
                    described.a,
                    described.b,
                    described.c,
                    described.c,
                    preference,
                    CANDIDATES as i32,
                    proposals.as_mut_ptr(),
                    &mut found,
                )
                .result()
            });
            let _ = result::destroy_matmul_pref(preference);
            proposed
        };
        proposed.map_err(failed("cublasLtMatmulAlgoGetHeuristic"))?;
        proposals.truncate(found.max(0) as usize);
        let usable = proposals.into_iter().filter(|p| p.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        let algorithms: Vec<_> = usable.map(|p| p.algo).collect();
        if algorithms.is_empty() {
            return Err(Error::Device(format!("cuBLASLt has no algorithm for {spec:?}")));
        }
        Ok(Product { library: self, spec, described, algorithms, chosen: 0 })
    }
}

/// The transposes of our matrices, as the library sees them: `Cᵀ` (n, m) from `B` and `A`.
fn describe(spec: &Spec) -> Result<Described> {
    use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
    let operand = if spec.operands == Precision::Bf16 { CUDA_R_16BF } else { CUDA_R_32F };
    let result_type = if spec.wide { CUDA_R_32F } else { operand };
    let matrix = |kind, rows: usize, columns: usize| {
        result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64)
            .map_err(failed("cublasLtMatrixLayoutCreate"))
    };
    let null = std::ptr::null_mut();
    let product = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, CUDA_R_32F);
    let product = product.map_err(failed("cublasLtMatmulDescCreate"))?;
    let mut described = Described { product, a: null, b: null, c: null };
    let Spec { layout, m, n, k, .. } = *spec;
    // The library's first operand is our B.
    let (first, second) = match layout {
        Layout::Nt => ((k, n), (k, m)),
        Layout::Nn => ((n, k), (k, m)),
        Layout::Tn => ((n, k), (m, k)),
    };
    described.a = matrix(operand, first.0, first.1)?;
    described.b = matrix(operand, second.0, second.1)?;
    described.c = matrix(result_type, n, m)?;
    let transposed = |yes: bool| i32::from(yes);
    let attributes = [
        (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, transposed(layout == Layout::Nt)),
        (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, transposed(layout == Layout::Tn)),
        (
            sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE,
            match spec.bias {
                true => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as i32,
                false => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT as i32,
            },
        ),
    ];
    for (which, value) in attributes {
        // SAFETY: the description is alive, and the attribute is an enumeration of four bytes.
        unsafe { result::set_matmul_desc_attribute(product, which, (&raw const value).cast(), size_of::<i32>()) }
            .map_err(failed("cublasLtMatmulDescSetAttribute"))?;
    }
    Ok(described)
}

impl Product<'_, '_> {
    /// Number of proposed algorithms.
    pub fn algorithms(&self) -> usize {
        self.algorithms.len()
    }

    /// Chooses one of them for the calls to come.
    pub fn choose(&mut self, which: usize) {
        self.chosen = which.min(self.algorithms.len() - 1);
    }

    /// Enqueues the product.
    ///
    /// # Safety
    /// The addresses are memory of the library's device with as many elements as the product's sizes say.
    pub unsafe fn call(&self, at: Addresses) -> Result<()> {
        let (library, described) = (self.library, &self.described);
        library.driver.current()?;
        if self.spec.bias {
            let which = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            // SAFETY: the description is alive, and the attribute is an address.
            unsafe {
                result::set_matmul_desc_attribute(
                    described.product,
                    which,
                    (&raw const at.bias).cast(),
                    size_of::<u64>(),
                )
            }
            .map_err(failed("cublasLtMatmulDescSetAttribute"))?;
        }
        let (one, zero) = (1.0f32, 0.0f32);
        let pointer = |address: u64| address as usize as *mut c_void;
        let (beta, added) = if self.spec.residual { (&one, at.residual) } else { (&zero, at.c) };
        let algorithm = self.algorithms.get(self.chosen).map_or(null(), |algorithm| &raw const *algorithm);
        // SAFETY: the descriptions are alive and say what lies at the addresses (this function's contract).
        unsafe {
            result::matmul(
                library.handle,
                described.product,
                (&raw const one).cast(),
                (&raw const *beta).cast(),
                pointer(at.b),
                described.a,
                pointer(at.a),
                described.b,
                pointer(added),
                described.c,
                pointer(at.c),
                described.c,
                algorithm,
                pointer(library.workspace.at(0, WORKSPACE)),
                WORKSPACE,
                library.driver.stream.cast(),
            )
        }
        .map_err(failed("cublasLtMatmul"))
    }
}
