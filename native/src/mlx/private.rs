//! Whether the libmlx that is loaded has the private parts that cpp/mlx_private.h knows.

use super::error::string_of;
use mlx_sys as sys;
use once_cell::sync::OnceCell;

/// The versions of MLX that its private parts are known of, and that is loaded, where the two differ. Then nothing is
/// captured.
pub fn unknown_version() -> Option<&'static (String, String)> {
    static UNKNOWN: OnceCell<Option<(String, String)>> = OnceCell::new();
    let compare = || {
        let (known, loaded) = (written_for(), loaded());
        (known != loaded).then_some((known, loaded))
    };
    UNKNOWN.get_or_init(compare).as_ref()
}

#[cfg(emlx_kernels)]
fn written_for() -> String {
    extern "C" {
        fn emlx_written_for() -> *const std::ffi::c_char;
    }
    // SAFETY: a constant of the C++ part.
    let text = unsafe { std::ffi::CStr::from_ptr(emlx_written_for()) };
    text.to_string_lossy().into_owned()
}

/// Without the C++ part nothing of MLX's is reached into.
#[cfg(not(emlx_kernels))]
fn written_for() -> String {
    loaded()
}

fn loaded() -> String {
    // SAFETY: the string is made here, filled in, copied and freed once.
    unsafe {
        let mut text = sys::mlx_string_new();
        let status = sys::mlx_version(&mut text);
        let version = match status {
            0 => string_of(&text),
            _ => String::new(),
        };
        sys::mlx_string_free(text);
        version
    }
}

#[cfg(all(test, emlx_kernels))]
mod tests {
    use super::*;

    #[test]
    fn the_loaded_mlx_is_the_one_whose_private_parts_are_known() {
        crate::mlx::init();
        assert_eq!(written_for(), loaded());
        assert_eq!(unknown_version(), None);
    }

    /// cpp/mlx_private.h has the members of an object of MLX's, in the order in which MLX's header declares them.
    #[test]
    fn mlx_lays_its_encoder_out_as_is_known_here() {
        let header = std::env::split_paths(env!("EMLX_INCLUDE"))
            .map(|folder| folder.join("mlx/backend/cuda/device.h"))
            .find_map(|file| std::fs::read_to_string(file).ok());
        let header = header.expect("MLX's headers");
        let class = header.split("class CommandEncoder {").nth(1);
        let class = class.and_then(|rest| rest.split("\n};").next());
        let members: Vec<&str> = class
            .expect("the class")
            .lines()
            .map(str::trim)
            .skip_while(|line| *line != "Device& device_;")
            .take_while(|line| !line.starts_with("LRUCache"))
            .collect();
        let known = [
            "Device& device_;",
            "CudaStream stream_;",
            "CudaGraph graph_;",
            "std::shared_ptr<Worker> worker_;",
            "int node_count_{0};",
            "bool in_concurrent_{false};",
            "std::vector<cudaGraphNode_t> from_nodes_;",
            "std::vector<cudaGraphNode_t> to_nodes_;",
            "std::string graph_nodes_key_;",
            "std::string graph_deps_key_;",
            "std::vector<GraphNode> concurrent_nodes_;",
            "std::vector<std::shared_ptr<array::Data>> temporaries_;",
        ];
        assert_eq!(members, known);
        assert!(!class.is_some_and(|class| class.contains("virtual")));
    }
}
