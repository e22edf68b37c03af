// Calls the kernels with small inputs and prints what they compute, one block of numbers in a line
// after its name. The inputs are the same on every machine, so two machines' lines can be compared.

#include "optimisers.cpp"

#include <cstdio>
#include <string>

namespace {

using std::string;

// Numbers from -1 to 1, which both precisions hold exactly, on any machine. Inlined it would triple
// the time that GCC takes.
uint64_t state = 1;
[[gnu::noinline]] REAL drawn() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return REAL(int(state >> 44) - (1 << 19)) / (1 << 19);
}

// Aligned numbers, with room after them.
struct Array {
    count size;
    std::vector<Pair> memory;
    explicit Array(count size) : size(size), memory(size / (2 * V) + 2) {}
    REAL *data() { return reinterpret_cast<REAL *>(memory.data()); }
    vec *vectors() { return memory[0].vectors; }
    Array &draw(REAL scale = 1, REAL shift = 0) {
        for (count i = 0; i < size; i++) data()[i] = drawn() * scale + shift;
        return *this;
    }
};

void show(REAL x) { std::printf(sizeof(REAL) == 4 ? " %.9g" : " %.17g", double(x)); }
void show(const vec &x) {
    for (int v = 0; v < V; v++) show(x[v]);
}
template <class Numbers>
void show(const string &name, const Numbers *numbers, count size) {
    std::printf("%s:", name.c_str());
    for (count i = 0; i < size; i++) show(numbers[i]);
    std::printf("\n");
}
void show(const string &name, Array &numbers) { show(name, numbers.data(), numbers.size); }

// Activations within a border of zeros.
struct Activations {
    Shape shape;
    Array numbers;
    static Shape shaped(int channels, int examples, int height, int width) {
        const int row = width + 2, example = (height + 2) * row;
        return {channels, examples, height, width, examples * example + 3, example, row, row + 1};
    }
    Activations(int channels, int examples, int height, int width)
        : shape(shaped(channels, examples, height, width)),
          numbers(count(channels) * shape.channel * V) {}
    vec *at() { return numbers.vectors(); }
    template <class Body>
    void each(Body body) {
        for (int c = 0; c < shape.channels; c++)
            for (int n = 0; n < shape.examples; n++)
                for (int y = 0; y < shape.height; y++)
                    for (int x = 0; x < shape.width; x++) body(at()[shape.at(c, n, y) + x]);
    }
    Activations &draw() {
        each([](vec &x) {
            for (int v = 0; v < V; v++) x[v] = drawn();
        });
        return *this;
    }
    void print(const string &name) {
        std::printf("%s:", name.c_str());
        each([](const vec &x) { show(x); });
        std::printf("\n");
    }
};

template <int L>
void places(const string &lanes) {
    Array x = Array(V * V).draw();
    show("unpack" + lanes, &static_cast<const vec &>(unpack<L>(x.data())), 1);
    show("unpack by number" + lanes, &static_cast<const vec &>(unpack(x.data() + V, L)), 1);
    Array packed(L);
    pack(packed.data(), *x.vectors(), L);
    show("pack" + lanes, packed);
    show("across" + lanes, &static_cast<const vec &>(across(*x.vectors(), V / L)), 1);
    show("sums_of" + lanes, &static_cast<const vec &>(sums_of<L>(x.vectors())), 1);
    const count number = V / L * 2 + 1;
    Array sums(number * L);
    add_parts(Array(number * V).draw().vectors(), number, sums.data(), L);
    show("add_parts" + lanes, sums);
}

// Winograd's convolution, its input's gradient and that of its weights. There are several blocks of
// tiles at each size, and the last one is not full.
void convolutions(const string &name, int algorithm, int lanes) {
    constexpr int INPUTS = 4, OUTPUTS = 8, EXAMPLES = 37, SIDE = 4;
    const int stride = algorithm == STRIDED ? 2 : 1;
    Activations x(INPUTS, EXAMPLES, stride * SIDE, stride * SIDE), dx = x;
    Activations z(OUTPUTS, EXAMPLES, SIDE, SIDE), dz = z;
    Array w(9 * INPUTS * OUTPUTS * lanes), dw(w.size), bias(OUTPUTS * lanes);
    x.draw(), dz.draw(), w.draw(), bias.draw();
    Layer l{};
    l.algorithm = algorithm, l.in = x.shape, l.out = z.shape;
    l.x = x.at(), l.dx = dx.at(), l.z = z.at(), l.dz = dz.at();
    convolve(l, false, w.data(), bias.data(), lanes);
    convolve(l, true, w.data(), nullptr, lanes);
    weight_gradient(l, dw.data(), lanes);
    const string number = " L" + std::to_string(lanes);
    z.print(name + number), dx.print(name + " input" + number);
    show(name + " weights" + number, dw);
}

// A 3×3 convolution by tables. Its rows are more than a chunk, its positions more than a run.
void tables(int lanes) {
    constexpr int INPUTS = 9, OUTPUTS = 6, EXAMPLES = 3, SIDE = 5, ROWS = 9 * INPUTS;
    Activations x(INPUTS, EXAMPLES, SIDE, SIDE), z(OUTPUTS, EXAMPLES, SIDE, SIDE), dz = z;
    Array w(ROWS * OUTPUTS * lanes), dw(w.size), bias(OUTPUTS * lanes);
    x.draw(), dz.draw(), w.draw(), bias.draw();
    std::vector<int64_t> x_offset, w_offset, x_base, z_base;
    for (int r = 0; r < ROWS; r++) {
        const count pixel = r % 9 / 3 * x.shape.row + r % 3;
        x_offset.push_back((r / 9 * x.shape.channel + pixel) * count(sizeof(vec)));
        w_offset.push_back(r);
    }
    for (int n = 0; n < EXAMPLES; n++)
        for (int i = 0; i < SIDE * SIDE; i++) {
            const count to = z.shape.at(0, n, i / SIDE) + i % SIDE;
            const count from = x.shape.at(0, n, i / SIDE) + i % SIDE - x.shape.row - 1;
            x_base.push_back(from * count(sizeof(vec)));
            z_base.push_back(to * count(sizeof(vec)));
        }
    const int positions = int(x_base.size());
    while (x_base.size() % P) {
        x_base.push_back(x_base.back());
        z_base.push_back(z_base.back());
    }
    Layer l{};
    l.forward = {ROWS, OUTPUTS, positions, 4 * P, ROWS, z.shape.channel,
                 x_offset.data(), x_base.data(), z_base.data(), w_offset.data()};
    l.algorithm = TABLES, l.x = x.at(), l.z = z.at(), l.dz = dz.at();
    convolve(l, false, w.data(), bias.data(), lanes);
    weight_gradient(l, dw.data(), lanes);
    const string number = " L" + std::to_string(lanes);
    z.print("tables" + number), show("tables weights" + number, dw);
}

// A norm with shortcut and ReLU, training and evaluating, and its gradient: with a dz of its own,
// and in place.
void norm(const string &name, int kind, int channels, int examples, int channels_per_group,
          int examples_per_group, int lanes) {
    constexpr int HEIGHT = 2, WIDTH = 6;
    const string number = name + " L" + std::to_string(lanes);
    Activations z(channels, examples, HEIGHT, WIDTH), y = z, dz = z, dy = z;
    Activations skip(channels - 1, examples, HEIGHT, WIDTH);
    z.draw(), dy.draw(), skip.draw();
    Array theta(2 * channels * lanes), gradient(theta.size), statistics(theta.size);
    theta.draw(), statistics.draw(REAL(0.25), 1);
    const int groups = channels * examples;
    Array mean(groups * V), invstd(groups * V), variance(groups * V);
    Layer l{};
    l.norm = kind, l.channels_per_group = channels_per_group;
    l.examples_per_group = examples_per_group;
    l.parts_per_group = kind == RUNNING ? V / lanes : 1;
    l.stride = 1, l.relu = 1, l.eps = 1e-5, l.momentum = 0.1;
    l.scale = 0, l.shift = channels, l.running_mean = 0, l.running_var = channels;
    l.out = z.shape, l.skip = skip.shape, l.skip_x = skip.at();
    l.z = z.at(), l.y = y.at(), l.dz = dz.at(), l.dy = dy.at();
    l.mean = mean.vectors(), l.invstd = invstd.vectors(), l.variance = variance.vectors();
    const PerLane of_theta{theta.data(), lanes}, of_gradient{gradient.data(), lanes};
    const PerLane of_statistics{statistics.data(), lanes};
    norm_and_activate(l, of_theta, of_statistics, false);
    y.print(number + " evaluated");
    norm_and_activate(l, of_theta, of_statistics, true);
    y.print(number);
    show(number + " statistics", statistics);
    show(number + " mean", mean), show(number + " invstd", invstd);
    show(number + " variance", variance);
    norm_gradient(l, of_theta, of_gradient);
    dz.print(number + " dz"), dy.print(number + " dy"), show(number + " gradient", gradient);
    dy.draw();
    l.stride = 0, l.dz = l.dy;
    norm_gradient(l, of_theta, of_gradient);
    dy.print(number + " dz in place"), show(number + " gradient in place", gradient);
}

void pools() {
    Activations y(2, 2, 5, 7), dy = y;
    y.draw();
    y.at()[y.shape.at(0, 1, 2) + 3][1] = std::numeric_limits<REAL>::quiet_NaN();
    Layer l{};
    l.out = y.shape, l.y = y.at(), l.dy = dy.at(), l.pool_top = l.pool_left = 1;
    const auto print = [&](const string &name, int kind, int height, int width) {
        Activations pooled(2, 2, height, width), pooled_dy = pooled, winner = pooled;
        pooled_dy.draw();
        l.pool = kind, l.pooled = pooled.shape, l.winner = winner.at();
        l.pooled_y = pooled.at(), l.pooled_dy = pooled_dy.at();
        pool(l), pool_gradient(l);
        pooled.print(name), dy.print(name + " dy");
        if (kind == MAX_POOL) winner.print(name + " winner");
    };
    print("max pool", MAX_POOL, 3, 4), print("mean pool", MEAN_POOL, 1, 1);
}

void losses(int lanes) {
    constexpr int CLASSES = 5, EXAMPLES = 4;
    const string number = " L" + std::to_string(lanes);
    Activations y(CLASSES, EXAMPLES, 1, 1), dy = y;
    y.draw();
    Layer l{};
    l.out = y.shape, l.y = y.at(), l.dy = dy.at();
    std::vector<int64_t> labels, hits(V);
    for (int i = 0; i < EXAMPLES * V; i++) labels.push_back(i * 7 % (CLASSES + 1) - 1);
    Network net{};
    net.layers = &l, net.count_layers = 1, net.batch_size = EXAMPLES, net.classes = CLASSES;
    net.parts = V / lanes, net.labels = labels.data();
    double loss[V];
    loss_and_gradient(net, loss, hits.data(), true);
    Array of_loss(V), of_hits(V);
    for (int v = 0; v < V; v++) {
        of_loss.data()[v] = REAL(loss[v]);
        of_hits.data()[v] = REAL(hits[v]);
    }
    show("loss" + number, of_loss), show("hits" + number, of_hits);
    dy.print("loss gradient" + number);
}

// Three updates of each optimiser. The last vector is not full where a lane has several places.
void descents(int lanes) {
    constexpr int PARAMETERS = 43;
    for (const int kind : {0, int(MOMENTUM), int(NESTEROV), int(ADAMW)}) {
        const char *const names[] = {"sgd", "momentum", "nesterov", "adamw"};
        const string name = string(names[kind]) + " L" + std::to_string(lanes);
        Array theta(PARAMETERS * lanes), gradient(theta.size);
        Array first(theta.size + V), second(theta.size + V), check(V);
        theta.draw();
        Network net{};
        net.parts = V / lanes, net.parameters = PARAMETERS, net.gradient = gradient.data();
        Group group{};
        group.theta = theta.data();
        for (int v = 0; v < V; v++) {
            group.base_lr[v] = 0.01 * (v % lanes + 1);
            group.lr_times_decay[v] = 0.001 * (v % lanes + 1);
        }
        const Optimiser of{kind, 0.9, 0.99, 1e-8, 0.01, 4, first.vectors(), second.vectors()};
        for (int t = 1; t <= 3; t++) {
            gradient.draw();
            const double schedule[] = {0.5, 1 - std::pow(of.beta1, t),
                                       std::sqrt(1 - std::pow(of.beta2, t))};
            *check.vectors() = kind ? descend(net, group, of, schedule) : update(net, group, 0.5);
        }
        show(name, theta), show(name + " check", check);
        if (kind) show(name + " first", first);
        if (kind == ADAMW) show(name + " second", second);
    }
}

// The smallest normal number, halved, and its half, doubled: they are kept, then 0, then kept.
// Being volatile, numbers are not computed before or after it is switched.
void denormals(const string &when) {
    constexpr REAL LEAST = std::numeric_limits<REAL>::min();
    volatile REAL normal = LEAST, denormal = LEAST / 2, scalar[2];
    volatile vec vector = all(LEAST), denormals = all(LEAST / 2), halved, doubled;
    scalar[0] = normal / 2, scalar[1] = denormal * 2;
    halved = vector / 2, doubled = denormals * 2;
    const vec results[] = {halved, doubled};
    const REAL scalars[] = {scalar[0], scalar[1]};
    std::printf("flush %s:", when.c_str());
    for (const REAL x : scalars) std::printf(" %d", x != 0);
    for (const vec &x : results)
        for (int v = 0; v < V; v++) std::printf(" %d", x[v] != 0);
    std::printf("\n");
}

}  // namespace

int main() {
    denormals("before");
    {
        const FlushDenormals flush;
        denormals("within");
    }
    denormals("after");
    for (int lanes = V; lanes > 0; lanes /= 2) {
        with_lanes(lanes, [](auto L) { places<L>(" L" + std::to_string(int(L))); });
        convolutions("tiles of 2", TILES_2, lanes);
        convolutions("tiles of 4", TILES_4, lanes);
        convolutions("strided", STRIDED, lanes);
        tables(lanes);
        norm("batch norm", RUNNING, 2, 70, 1, 70, lanes);
        norm("ghost norm", RUNNING, 3, 5, 1, 2, lanes);
        norm("group norm", OWN, 4, 3, 2, 1, lanes);
        losses(lanes);
        descents(lanes);
    }
    Array squares = Array(V).draw(REAL(0.5), 2);
    show("root", &static_cast<const vec &>(root(*squares.vectors())), 1);
    pools();
}
