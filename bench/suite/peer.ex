defmodule EMLX.Bench.Peer do
  @moduledoc """
  Another program that runs what is compared with: Python MLX, XLA, or a VM with Bumblebee. It reads commands from its
  standard input, one a line, words with what a URL would escape escaped, and answers each with a line that begins with
  `= `. What else it prints is passed over.
  """

  use GenServer

  @enforce_keys [:name, :owner]
  defstruct [:name, :owner, versions: []]

  @type t :: %__MODULE__{}

  @patience 300_000

  @doc "Starts a program. Raises if it does not answer with its versions."
  def start(name, executable, arguments, opts) do
    environment =
      for {key, value} <- opts[:env] || [], do: {String.to_charlist(key), value && String.to_charlist(value)}

    environment = for {key, value} <- environment, do: {key, value || false}

    settings =
      [:binary, :exit_status, {:line, 65_536}, {:args, arguments}, {:env, environment}] ++
        if(opts[:cd], do: [{:cd, opts[:cd]}], else: [])

    # A process that outlives each group's, for the answers go to the one that opened the port.
    {:ok, owner} = GenServer.start_link(__MODULE__, {executable, settings})
    peer = %__MODULE__{name: name, owner: owner}
    versions = call!(peer, "versions", [])
    %{peer | versions: Enum.map(versions, &(&1 |> String.split("=", parts: 2) |> List.to_tuple()))}
  end

  @doc "Sends a command and gives the words of the answer. Raises with the program's own message if it fails."
  def call!(%__MODULE__{owner: owner, name: name}, command, words) do
    line = Enum.map_join([command | words], " ", &(&1 |> to_string() |> URI.encode_www_form()))

    case GenServer.call(owner, line <> "\n", :infinity) do
      {:ok, words} -> words
      {:error, message} -> raise "#{name} #{message}"
    end
  end

  @impl true
  def init({executable, settings}), do: {:ok, Port.open({:spawn_executable, executable}, settings)}

  @impl true
  def handle_call(line, _from, port) do
    if Port.info(port) do
      Port.command(port, line)
      {:reply, answer(port), port}
    else
      {:reply, {:error, "has ended"}, port}
    end
  end

  # What it prints between two commands.
  @impl true
  def handle_info(_message, port), do: {:noreply, port}

  defp answer(port) do
    receive do
      {^port, {:data, {:eol, "= ok" <> words}}} -> {:ok, String.split(words)}
      {^port, {:data, {:eol, "= error " <> message}}} -> {:error, "says: #{URI.decode_www_form(message)}"}
      {^port, {:data, _}} -> answer(port)
      {^port, {:exit_status, status}} -> {:error, "ended with status #{status}"}
    after
      @patience -> {:error, "did not answer in #{div(@patience, 1000)} seconds"}
    end
  end

  @doc "Has a case made: what `kind` makes of some options. Gives the case's number there."
  def define(peer, kind, options) do
    [number] = call!(peer, "define", [kind | for({key, value} <- options, do: "#{key}=#{value}")])
    number
  end

  @doc "Microseconds of one run of a case."
  def time(peer, number), do: hd(times(peer, number))

  @doc "Microseconds of one run of a case that gives several."
  def times(peer, number), do: call!(peer, "time", [number]) |> Enum.map(&to_number/1)

  @doc "Bytes that a run of a case takes at its peak beyond what is held before it."
  def peak(peer, number), do: call!(peer, "peak", [number]) |> hd() |> to_number()

  @doc "Some numbers of a case's result, spread evenly over it."
  def sample(peer, number), do: call!(peer, "sample", [number]) |> Enum.map(&to_number/1)

  @doc "Gives a case up, and the memory that is kept for others."
  def drop(peer, number), do: call!(peer, "drop", [number])

  @doc "Ends the program."
  def stop(%__MODULE__{owner: owner}), do: GenServer.stop(owner)

  # Python's nan and inf read as a number that agrees with nothing.
  defp to_number(text) do
    case Float.parse(text) do
      {number, ""} -> number
      _ -> 1.0e300
    end
  end
end
