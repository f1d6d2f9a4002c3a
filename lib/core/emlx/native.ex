defmodule EMLX.Native do
  @moduledoc false
  # The stubs of the NIF (native/src/nif). `call!/1` and `await!/4` convert the results of its functions to a value or
  # raise an `EMLX.Error`.
  #
  # This module must not contain anonymous functions. When the module is loaded again, as by IEx's `recompile`, the
  # library refuses to load. The VM then keeps the old code, but not its anonymous functions.

  @on_load :load

  # The module loads even if the library cannot: every function then raises an error with the cause.
  def load do
    path = :filename.join(:code.priv_dir(:emlx), ~c"native/emlx_native")

    # The library is loaded before the application starts, which checks the types of these settings.
    settings = %{
      malloc: setting(:malloc, true),
      exit_handler: setting(:exit_handler, true),
      address_space: setting(:address_space, true),
      spin: setting(:spin, true),
      threads: setting(:threads, nil)
    }

    case :erlang.load_nif(path, settings) do
      {:error, {:load_failed, text}} -> :persistent_term.put({__MODULE__, :failure}, List.to_string(text))
      other -> other
    end
  end

  defp setting(name, default), do: :application.get_env(:emlx, name, default)

  @doc false
  # The loader's error message if the library could not be loaded; else nil.
  def failure, do: :persistent_term.get({__MODULE__, :failure}, nil)

  def apply(_op, _inputs, _target), do: missing()
  def apply_and_cast(_op, _inputs, _dtype, _target), do: missing()
  def scalar(_binary, _dtype, _target), do: missing()
  def from_binary(_binary, _shape, _dtype, _target), do: missing()
  def from_large_binary(_binary, _shape, _dtype, _target), do: missing()
  def info(_array), do: missing()
  def op_table, do: missing()
  def unknown_mlx, do: missing()
  def settings, do: missing()
  def strides(_array), do: missing()
  def deallocate(_array), do: missing()
  def placeholder(_shape, _dtype, _device), do: missing()
  def is_traced(_array), do: missing()
  def allow_tf32(_allowed), do: missing()
  def check_results(_on), do: missing()
  def device_available(_device), do: missing()
  def device_absence(_device), do: missing()
  def device_info(_device), do: missing()
  def identify(_term, _gather), do: missing()
  def identify_long(_term, _gather, _limit), do: missing()
  def watch(_arrays), do: missing()
  def sizes(_arrays), do: missing()
  def queue_start(_device), do: missing()
  def queue_close(_queue), do: missing()
  def eval(_arrays, _target, _tag), do: missing()
  def read(_array, _target, _tag), do: missing()
  def computed(_array), do: missing()
  def pin(_array, _target, _tag), do: missing()
  def from_address(_address, _shape, _dtype, _target), do: missing()
  def shm_create(_binary, _permissions), do: missing()
  def shm_take(_name, _shape, _dtype, _target), do: missing()
  def shm_unlink(_name), do: missing()
  def program_new(_inputs, _constants, _instructions, _outputs, _opts), do: missing()
  def program_info(_program), do: missing()
  def program_constants(_program), do: missing()
  def program_outputs(_program, _target), do: missing()
  def program_describe(_program, _target), do: missing()
  def program_explain(_program, _device), do: missing()
  def program_save(_program, _path, _names, _target, _tag), do: missing()
  def program_load(_path, _target), do: missing()
  def program_run(_program, _inputs, _target, _tag), do: missing()
  def program_run_dirty(_program, _inputs, _target, _tag), do: missing()
  def program_resume(_suspended, _answer), do: missing()
  def memory(_figure), do: missing()
  def set_limit(_limit, _bytes), do: missing()
  def clear_cache, do: missing()
  def reset_peak, do: missing()
  def load_safetensors(_path, _only, _target), do: missing()
  def save_safetensors(_path, _entries, _target, _tag), do: missing()

  defp missing do
    loaded!()
    :erlang.nif_error(:nif_not_loaded)
  end

  @doc false
  # Raises EMLX.Error of kind :not_loaded if the library could not be loaded.
  def loaded! do
    case failure() do
      nil -> :ok
      text -> raise EMLX.Error, kind: :not_loaded, op: "EMLX", reason: EMLX.Doctor.not_loaded(text)
    end
  end

  @doc false
  # Returns the value of a call, or raises its error.
  def call!({:ok, value}), do: value
  def call!({:error, error}), do: raise(EMLX.Error, error)

  @doc false
  # Calls a function that submits a job to a queue, and waits for the answer, which is a message. A queue answers every
  # job, even when it closes. A function whose value is already known returns it instead of `{:queued, …}`. `op`, the
  # `refs` of its arrays, and `opts` are for telemetry.
  def await!(op, refs, opts, fun) do
    tag = make_ref()

    case call!(fun.(tag)) do
      {:queued, device, bytes} -> EMLX.Queue.wait!(tag, op, refs, device, bytes, EMLX.Queue.of(opts))
      value -> value
    end
  end
end
