//! The unit tests run without the VM, whose functions the crate refers to all the same. Here they are, for the linker;
//! none of them is called.

macro_rules! absent {
    ($($name:ident)*) => {$(
        #[no_mangle]
        extern "C" fn $name() {
            unreachable!(concat!(stringify!($name), " belongs to the VM, which is not here"));
        }
    )*};
}

absent! {
    enif_alloc_binary enif_alloc_env enif_alloc_resource enif_clear_env enif_free_env enif_get_atom
    enif_get_atom_length enif_get_double enif_get_int enif_get_list_cell enif_get_list_length enif_get_long
    enif_get_map_size enif_get_map_value enif_get_resource enif_get_tuple enif_get_uint enif_get_ulong enif_hash
    enif_init_resource_type enif_inspect_binary enif_is_atom enif_is_empty_list enif_is_identical enif_is_list
    enif_is_map enif_is_process_alive enif_is_tuple enif_keep_resource enif_make_badarg enif_make_binary
    enif_make_copy enif_make_int enif_make_list_from_array enif_make_long enif_make_map_from_arrays enif_make_map_put
    enif_make_new_atom_len enif_make_new_binary enif_make_resource enif_make_resource_binary
    enif_make_tuple_from_array enif_make_uint enif_make_ulong enif_map_iterator_create enif_map_iterator_destroy
    enif_map_iterator_get_pair enif_map_iterator_next enif_map_iterator_prev enif_raise_exception enif_release_binary
    enif_release_resource enif_schedule_nif enif_self enif_send enif_snprintf enif_term_to_binary enif_term_type
    enif_thread_type
}
