//! GEMMs by NVIDIA's cuBLASLt. Only benchmarks use them, to compare this project's GEMMs with
//! cuBLASLt. The library is loaded on demand; without it no comparison is made.
//!
//! Matrices here are row-major, but cuBLASLt uses column-major matrices. cuBLASLt therefore sees each matrix
//! transposed, and `C = A B` becomes `Cᵀ = Bᵀ Aᵀ`.

use std::ffi::c_void;
use std::ptr::null;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use super::{Driver, Memory};
use crate::backend::contract::Precision;
use crate::backend::kernels::device::Device as _;
use crate::{Error, Result};

/// Workspace of an algorithm in bytes, as NVIDIA recommends for Hopper (cuBLAS,
/// cublasSetWorkspace).
const WORKSPACE: usize = 32 << 20;
/// Maximum number of algorithms that cuBLASLt proposes for a GEMM.
const CANDIDATES: usize = 16;

/// Memory layout of the operands of a GEMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// (m, k) times the transpose of (n, k).
    Nt,
    /// (m, k) times (k, n).
    Nn,
    /// The transpose of (k, m) times (k, n).
    Tn,
}

/// A GEMM `C = A B (+ bias) (+ residual)` with `C` of (m, n).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    pub layout: Layout,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Element type of the operands.
    pub operands: Precision,
    /// Whether the result is f32; otherwise it has the type of the operands.
    pub wide: bool,
    /// Whether a bias of (n) is added.
    pub bias: bool,
    /// Whether a matrix of the result's shape and type is added.
    pub residual: bool,
}

/// Device addresses of the operands of a call; 0 for absent ones.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub bias: u64,
    pub residual: u64,
}

/// Returns a function that converts a library error of `call`.
fn failed(call: &'static str) -> impl Fn(CublasError) -> Error {
    move |e| Error::Device(format!("{call}: {:?}", e.0))
}

/// cuBLASLt on one device.
pub struct CublasLt<'d> {
    driver: &'d Driver,
    handle: sys::cublasLtHandle_t,
    workspace: Memory,
}

impl Drop for CublasLt<'_> {
    fn drop(&mut self) {
        let _ = self.driver.synchronize();
        // SAFETY: the handle belongs to this value and is not used afterwards.
        unsafe {
            let _ = result::destroy_handle(self.handle);
        }
    }
}

/// The library's descriptors of a GEMM.
struct Described {
    product: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
}

impl Drop for Described {
    fn drop(&mut self) {
        // SAFETY: each descriptor belongs to this value or is null, which the library ignores.
        unsafe {
            for layout in [self.a, self.b, self.c] {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.product);
        }
    }
}

/// A GEMM and its algorithms.
pub struct Product<'l, 'd> {
    library: &'l CublasLt<'d>,
    spec: Spec,
    described: Described,
    algorithms: Vec<sys::cublasLtMatmulAlgo_t>,
    selected: usize,
}

impl<'d> CublasLt<'d> {
    /// Loads the library. Returns [`Error::Device`] if it is missing.
    pub fn new(driver: &'d Driver) -> Result<Self> {
        // SAFETY: loading a library runs its initialisers; the initialisers of cuBLASLt are safe to
        // run.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Device(
                "the library (libcublasLt) cannot be loaded; add its folder to LD_LIBRARY_PATH".into(),
            ));
        }
        driver.make_current()?;
        let workspace = driver.allocate(WORKSPACE)?;
        Ok(Self { driver, handle: result::create_handle().map_err(failed("cublasLtCreate"))?, workspace })
    }

    /// Name and version, such as `cuBLASLt 13.0.0`.
    pub fn name(&self) -> String {
        // SAFETY: the library is loaded.
        let version = unsafe { sys::cublasLtGetVersion() };
        format!("cuBLASLt {}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }

    /// Returns a GEMM with the algorithms that the library proposes for it. The first one is selected.
    pub fn product<'l>(&'l self, spec: Spec) -> Result<Product<'l, 'd>> {
        self.driver.make_current()?;
        let described = describe(&spec)?;
        let preference = result::create_matmul_pref().map_err(failed("cublasLtMatmulPreferenceCreate"))?;
        let room = WORKSPACE as u64;
        // SAFETY: all fields are numbers, or a status for which 0 is valid.
        let none: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        let mut proposals = vec![none; CANDIDATES];
        let mut found = 0;
        // SAFETY: all descriptors are alive; the list has room for `CANDIDATES` proposals.
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
        Ok(Product { library: self, spec, described, algorithms, selected: 0 })
    }
}

/// Descriptors of a GEMM in the library's column-major terms: `Cᵀ` (n, m) from `B` and `A`.
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
    // The library's first operand is B.
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
        // SAFETY: the descriptor is alive, and the attribute is an enum of four bytes.
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

    /// Selects the algorithm of later calls.
    pub fn choose(&mut self, which: usize) {
        self.selected = which.min(self.algorithms.len() - 1);
    }

    /// Enqueues the GEMM.
    ///
    /// # Safety
    /// The addresses must point to memory of the library's device that covers all operands of the GEMM.
    pub unsafe fn call(&self, at: Addresses) -> Result<()> {
        let (library, described) = (self.library, &self.described);
        library.driver.make_current()?;
        if self.spec.bias {
            let which = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            // SAFETY: the descriptor is alive, and the attribute is an address.
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
        let algorithm = self.algorithms.get(self.selected).map_or(null(), |algorithm| &raw const *algorithm);
        // SAFETY: the descriptors are alive, and the caller guarantees that they describe the memory at the
        // addresses.
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
