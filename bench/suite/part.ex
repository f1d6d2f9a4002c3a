defmodule EMLX.Bench.Part do
  @moduledoc """
  A part of the suite: what a file in `bench/suite/parts` defines. The part's name is the file's, and the module is
  `EMLX.Bench.Parts.<Name>`; a new file there is a new part.

  A part lists its groups. A group is what is measured in turn: sides, each a function that runs once and gives its
  figure, and the rows that compare them. Groups are made one by one, since their inputs take memory.
  """

  defmodule Group do
    @moduledoc """
    What is measured in turn.

      * `:sides` - `[{name, fun}]`; the function gives microseconds or bytes, or whatever the rows make such figures of
      * `:rows` - `[{label, side here, [sides that it is compared with]}]`; sides that are not among `:sides` are left
        out. A row may have a unit of its own, and a function of what a side's runs gave that gives as many figures:
        `{label, side here, [sides], unit: unit, figures: function}`
      * `:unit` - `:time` (microseconds), `:token` (microseconds a token, written as tokens a second) or `:bytes`
      * `:point` - nil, or `{panel, x}` for what belongs to a chart of growth
      * `:missing` - `[message]`, what was to be compared and could not be
      * `:notes` - `[line]`, what stands under the table
      * `:pause` - whether there is a pause before each side, which OpenBLAS's threads need on the CPU
      * `:tidy` - called at the end
    """
    @enforce_keys [:sides, :rows]
    defstruct [:sides, :rows, :point, unit: :time, missing: [], notes: [], pause: true, tidy: nil]
  end

  @type context :: %{
          device: :cpu | :gpu,
          quick?: boolean,
          full?: boolean,
          folder: Path.t(),
          peers: %{atom => EMLX.Bench.Peer.t()}
        }

  @doc "One line for `--list`."
  @callback about() :: String.t()

  @doc "What the part needs: `:core`, or `:nx` where it has nothing to show without Nx."
  @callback needs() :: :core | :nx

  @doc "The other programs that the part compares with: the keys of `EMLX.Bench.Peers`, as `:mlx`."
  @callback peers() :: [atom]

  @doc "The groups, `{name, function that makes the group}` each."
  @callback groups(context) :: [{String.t(), (-> %Group{})}]

  @doc "Lines under the table, of the part's rows as `EMLX.Bench.Report` has them."
  @callback summary([map]) :: [String.t()]

  @optional_callbacks summary: 1

  @doc "Makes the module a part, with `:about`, and `:needs` and `:peers` where they are not `:core` and Python MLX."
  defmacro __using__(opts) do
    quote do
      @behaviour EMLX.Bench.Part
      # Loaded where Nx is, and used there.
      @compile {:no_warn_undefined, [Nx, EMLX.Backend, EMLX.Bench.Here]}

      alias EMLX.Bench.Part.Group

      @impl true
      def about, do: unquote(opts[:about])

      @impl true
      def needs, do: unquote(opts[:needs] || :core)

      @impl true
      def peers, do: unquote(opts[:peers] || [:mlx])
    end
  end
end
