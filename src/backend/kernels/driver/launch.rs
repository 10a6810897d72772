//! Launches: loads modules and functions, and maps the flags of kernels to launch attributes.

use std::ffi::c_void;

use cudarc::driver::result;
use cudarc::driver::sys;

use super::{Driver, failed};
use crate::backend::kernels::device::{Device as _, Grid, Kernel};
use crate::backend::kernels::own;
use crate::{Error, Result};

impl Driver {
    /// Returns the function of a kernel. Loads its module on first use.
    fn function(&self, kernel: &'static Kernel) -> Result<sys::CUfunction> {
        let file = own::file_of(kernel);
        let mut loaded = self.loaded();
        if let Some(function) = loaded.functions.get(&(file, kernel.name)) {
            return Ok(*function);
        }
        let module = match loaded.modules.get(&file) {
            Some(module) => *module,
            None => {
                // SAFETY: the image is a complete fatbin from nvcc.
                let module = unsafe { result::module::load_data(own::image(file).as_ptr().cast()) }
                    .map_err(failed(format!("cuModuleLoadData of the file of {}", kernel.name)))?;
                loaded.modules.insert(file, module);
                module
            }
        };
        let failed = failed(format!("cuModuleGetFunction of {}", kernel.name));
        // SAFETY: the module is loaded, and stays loaded until the driver is dropped.
        let function = unsafe { result::module::get_function(module, kernel.c_name.to_owned()) }.map_err(&failed)?;
        use sys::CUfunction_attribute::*;
        // SAFETY: the function belongs to a loaded module.
        let fixed = unsafe { result::function::get_function_attribute(function, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES) };
        let dynamic = self.properties.shared_bytes as i32 - fixed.map_err(&failed)?;
        let limit = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: as above; static and dynamic memory add up to the limit of the device.
        unsafe { result::function::set_function_attribute(function, limit, dynamic) }.map_err(&failed)?;
        loaded.functions.insert((file, kernel.name), function);
        Ok(function)
    }

    /// Enqueues a launch.
    ///
    /// # Safety
    /// The parameters match the kernel, and the memory they point to stays allocated until the
    /// launch has ended.
    pub(super) unsafe fn launch_kernel(
        &self,
        kernel: &'static Kernel,
        grid: Grid,
        shared_bytes: usize,
        parameters: &mut [*mut c_void],
    ) -> Result<()> {
        let [x, y, z] = grid.0;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        self.make_current()?;
        let function = self.function(kernel)?;
        let failed = |e| failed(format!("launch of {} on {x} x {y} x {z} blocks", kernel.name))(e);
        let mut attributes = attribute_of(kernel).into_iter().collect::<Vec<_>>();
        let mut config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: kernel.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes as u32,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        if kernel.coresident && kernel.early {
            config.gridDimX = resident_grid(kernel, x, self.resident_clusters(kernel, function, &config)?)?;
        }
        // SAFETY: the parameters match the kernel (contract of this function), the function belongs
        // to a loaded module, and the attributes live across the call.
        unsafe { sys::cuLaunchKernelEx(&config, function, parameters.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(&failed)?;
        if self.synchronous {
            self.synchronize().map_err(|e| Error::Device(format!("{}: {e}", kernel.name)))
        } else {
            Ok(())
        }
    }

    /// Returns the number of clusters of a launch that the GPU holds at once. The driver's result is cached
    /// by kernel and shared memory size. A partition of a GPU (MIG) may hold fewer clusters than its
    /// multiprocessors suggest, because a cluster lies within one GPC.
    fn resident_clusters(
        &self,
        kernel: &'static Kernel,
        function: sys::CUfunction,
        config: &sys::CUlaunchConfig,
    ) -> Result<u32> {
        let key = (kernel.name, config.sharedMemBytes);
        if let Some(clusters) = self.loaded().clusters.get(&key) {
            return Ok(*clusters);
        }
        let mut count = 0;
        // SAFETY: the function belongs to a loaded module, and the configuration outlives the call.
        let asked = unsafe {
            if kernel.cluster > 1 {
                sys::cuOccupancyMaxActiveClusters(&mut count, function, config)
            } else {
                let (threads, shared) = (kernel.threads as i32, config.sharedMemBytes as usize);
                sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut count, function, threads, shared)
            }
        };
        asked.result().map_err(failed(format!("resident blocks of {}", kernel.name)))?;
        let count = u32::try_from(count).unwrap_or(0);
        let clusters = if kernel.cluster > 1 { count } else { count * self.properties.processors as u32 };
        self.loaded().clusters.insert(key, clusters);
        Ok(clusters)
    }
}

/// Returns the number of blocks of a launch whose blocks wait for one another: at most those that are
/// resident at once. Such a kernel supports any grid size, which does not change the bits of its results.
fn resident_grid(kernel: &Kernel, blocks: u32, clusters: u32) -> Result<u32> {
    if clusters == 0 {
        let (name, cluster) = (kernel.name, kernel.cluster);
        return Err(Error::Device(format!(
            "{name}: this GPU, or the part of it that is visible, cannot hold one cluster of {cluster} blocks; use a larger \
             partition, or --device cpu"
        )));
    }
    Ok(blocks.min(clusters * kernel.cluster))
}

/// Launch attribute of a kernel: programmatic dependent launch for EARLY, cooperative launch for
/// CORESIDENT. A launch cannot have both. An early kernel whose blocks wait for one another does
/// not need a cooperative launch: [`resident_grid`] limits its blocks to those that the GPU holds at
/// once, and earlier launches never wait for it, so all of its blocks become resident.
fn attribute_of(kernel: &Kernel) -> Option<sys::CUlaunchAttribute> {
    use sys::CUlaunchAttributeID_enum::*;
    // SAFETY: the type is a C union of numbers, for which zeros are valid.
    let mut value: sys::CUlaunchAttributeValue = unsafe { std::mem::zeroed() };
    let id = if kernel.early {
        value.programmaticStreamSerializationAllowed = 1;
        CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    } else if kernel.coresident {
        value.cooperative = 1;
        CU_LAUNCH_ATTRIBUTE_COOPERATIVE
    } else {
        return None;
    };
    Some(sys::CUlaunchAttribute { id, pad: [0; 4], value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_wait_for_one_another_are_limited_to_those_resident_at_once() {
        let kernel = Kernel {
            name: "split",
            c_name: c"split",
            file: 0,
            threads: 384,
            cluster: 2,
            coresident: true,
            early: true,
            parameters: &[],
            emulated: None,
        };
        assert_eq!(resident_grid(&kernel, 132, 66).unwrap(), 132);
        // 18 multiprocessors hold 8 clusters of 2 if two multiprocessors have no partner.
        assert_eq!(resident_grid(&kernel, 18, 8).unwrap(), 16);
        assert_eq!(resident_grid(&kernel, 4, 8).unwrap(), 4);
        let refused = resident_grid(&kernel, 4, 0).unwrap_err().to_string();
        assert!(refused.contains("one cluster of 2 blocks"), "{refused}");
    }
}
