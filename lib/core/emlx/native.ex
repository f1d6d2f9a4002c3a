defmodule EMLX.Native do
  @moduledoc false
  # The stubs of the NIF (native/src/nif) and the one door to them: `call!/1` and `await!/3` turn what comes back into a
  # value or an `EMLX.Error`.
  #
  # No anonymous functions here: where the module is loaded a second time, as IEx's `recompile` does, the library declines, the VM keeps
  # the code that is there, but not its functions of that kind.

  @on_load :load

  # A library that cannot be loaded does not keep the module from being: every function then says what is wrong.
  def load do
    path = :filename.join(:code.priv_dir(:emlx), ~c"native/emlx_native")

    # Before the application starts, which refuses what is of a wrong type.
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
  # Why the library could not be loaded, in the loader's words; nil where it was.
  def failure, do: :persistent_term.get({__MODULE__, :failure}, nil)

  def apply(_op, _inputs, _target), do: missing()
  def from_binary(_binary, _shape, _dtype, _target), do: missing()
  def from_large_binary(_binary, _shape, _dtype, _target), do: missing()
  def info(_array), do: missing()
  def op_table(), do: missing()
  def unknown_mlx(), do: missing()
  def settings(), do: missing()
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
  def clear_cache(), do: missing()
  def reset_peak(), do: missing()
  def load_safetensors(_path, _only, _target), do: missing()
  def save_safetensors(_path, _entries, _target, _tag), do: missing()

  defp missing do
    loaded!()
    :erlang.nif_error(:nif_not_loaded)
  end

  @doc false
  # Raises where the library could not be loaded.
  def loaded! do
    case failure() do
      nil -> :ok
      text -> raise EMLX.Error, kind: :not_loaded, op: "EMLX", reason: EMLX.Doctor.not_loaded(text)
    end
  end

  @doc false
  # The value of a call, or its error raised.
  def call!({:ok, value}), do: value
  def call!({:error, error}), do: raise(EMLX.Error, error)

  @doc false
  # Calls a function that puts a job on a queue, and waits for the answer, which is a message. A queue answers every
  # job, also when it closes. A function that has its value at once returns it instead of what was queued. `op`, `refs`
  # of the arrays that it is about, and `opts` are for telemetry.
  def await!(op, refs, opts, fun) do
    tag = make_ref()

    case call!(fun.(tag)) do
      {:queued, device, bytes} -> EMLX.Queue.wait!(tag, op, refs, device, bytes, EMLX.Queue.of(opts))
      value -> value
    end
  end
end
